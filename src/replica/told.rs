//! What the core says of the past and of placement, in words: one word for programs, and a sentence for people.

use std::{borrow::Cow, time::Duration};

use tokio::time::Instant;

use super::{
    clock::Clock,
    record::{self, Lease},
};
use crate::{
    ops::{status, timeline::FOUND},
    protocol::{
        history::{Reason, Release, Takeover},
        roster::Wait,
    },
};

/// How a Lease came to have another holder.
pub(super) fn reason(reason: Reason) -> (&'static str, &'static str) {
    match reason {
        Reason::Created => ("Created", "there was no Lease"),
        Reason::Released(Release::Asked) => ("HandedOver", "leasehold hand-over asked for it"),
        Reason::Released(Release::Stopping) => ("Stopping", "its holder stops, and handed it over or released it"),
        Reason::Released(Release::Failed) => ("Failed", "the term of its holder failed"),
        Reason::Released(Release::Unable) => ("Unable", "its holder could not run the kind any more"),
        Reason::Released(Release::Balance) => ("Balance", "its holder handed it over for balance"),
        Reason::Released(Release::Untold) => {
            ("Released", "its holder released it without a successor, as when its renewals were late")
        }
        Reason::Cleared => ("Cleared", "another client cleared its holder"),
        Reason::Expired => ("Expired", "its holder fell silent for the lease duration"),
        Reason::ProvenDead => ("ProvenDead", "the process of its holder is proven dead"),
        Reason::Restarted => ("Restarted", "the container of its holder was restarted and took it back"),
        Reason::Overwritten => ("Overwritten", "another client wrote it while it was held"),
        Reason::Unseen => ("Unseen", "this replica did not see how: it did not hear of the Leases"),
    }
}

pub(super) fn takeover(takeover: &Takeover, clock: Clock) -> status::Takeover {
    let Takeover { at, from, to, token, reason: why, without_leader } = takeover;
    status::Takeover {
        at: clock.instant(*at),
        from: from.clone(),
        to: to.clone(),
        token: token.clone(),
        reason: words(reason(*why)),
        without_leader: *without_leader,
    }
}

fn words((word, sentence): (&'static str, &'static str)) -> (Cow<'static, str>, Cow<'static, str>) {
    (Cow::Borrowed(word), Cow::Borrowed(sentence))
}

/// What a Lease says of how its holder came to hold it; `None` if none does, or it does not say since when. Both times on it
/// are of the holder's clock, and are compared with each other only.
pub(super) fn found(lease: &Lease, now: Instant) -> Option<status::Takeover> {
    let holding = record::record(lease)?.holding()?;
    let (acquired, renewed) = (lease.spec.acquire_time.as_ref()?, lease.spec.renew_time.as_ref()?);
    let held = Duration::try_from(renewed.0.duration_since(acquired.0)).ok()?;
    Some(status::Takeover {
        at: now.checked_sub(held)?,
        from: None,
        token: holding.token(),
        to: holding.holder?,
        reason: words(FOUND),
        without_leader: None,
    })
}

/// Why no kind is moved for balance.
pub(super) fn wait(wait: &Wait, clock: Clock) -> status::Wait {
    let (word, message, until) = match wait {
        Wait::Blind => ("Blind", "it does not see the Leases".to_owned(), None),
        Wait::Settling(until) => (
            "Settling",
            "the replicas, or what they can run, have just changed (placement.settle)".to_owned(),
            Some(until),
        ),
        Wait::Naming(until) => ("Naming", "another holder is just naming successors".to_owned(), Some(until)),
        Wait::Rollout(until) => {
            ("Rollout", "two generations of replicas live side by side: a rollout goes on".to_owned(), Some(until))
        }
        Wait::Unheard(replicas) => {
            let names = replicas.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = replicas.len().saturating_sub(NAMED);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            ("Unheard", format!("it has not heard {names}{more} renew yet"), None)
        }
        Wait::OnRestart => {
            ("OnRestart", "placement.rebalance is OnRestart, and no rollout has ended since".to_owned(), None)
        }
        Wait::Never => ("Never", "placement.rebalance is Never".to_owned(), None),
    };
    status::Wait { reason: (word, message), until: until.map(|until| clock.instant(*until)) }
}

/// Replicas that a sentence names.
const NAMED: usize = 8;
