//! Why a kind is where it is, what placement would do with it next and why not yet. Pure.
//!
//! What placement would do is asked of the placement that decides, in the seat of a replica, with what is stored. What time
//! decides, its holder says: that one moves the kind.

use leasehold::{
    ops::{
        picture::{Kind, Verdict, pod_of, takeovers},
        report::{Report, Shard, Takeover},
    },
    protocol::roster::{Outlook, Roster, Unfit},
};
use serde::Serialize;

use super::{
    installation::{Installation, Seen, picture},
    text,
};

/// What is known of one kind.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Explanation {
    pub(super) namespace: String,
    #[serde(flatten)]
    pub(super) kind: Kind,
    /// What placement would do with it.
    pub(super) placement: Placement,
    pub(super) candidates: Vec<Candidate>,
    /// The last ten, the last one at the end.
    pub(super) takeovers: Vec<Takeover>,
    pub(super) not_reached: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Placement {
    /// Holder identity of the replica that shall have it; the holder's own if it stays.
    pub(super) target: Option<String>,
    /// Who gets it if that one goes.
    pub(super) successor: Option<String>,
    /// In words.
    pub(super) next: String,
    /// Why it does not happen yet, one sentence each.
    pub(super) waits: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Candidate {
    pub(super) pod: String,
    pub(super) identity: String,
    pub(super) load: u64,
    pub(super) capacity: u32,
    pub(super) newest: bool,
    /// Why it cannot be given the kind.
    pub(super) unfit: Option<String>,
    /// What else speaks against it.
    pub(super) remarks: Vec<String>,
}

/// `None`: there is no such kind.
pub(super) fn explain(seen: &Seen, kind: &str, lease: &str) -> Option<Explanation> {
    let picture = picture(seen);
    let row = picture.kinds.into_iter().find(|row| row.kind == kind && row.lease == lease)?;
    let installation = Installation::of(seen);
    let reports = seen.reports.values().filter_map(|report| report.as_ref().ok());
    let of_kind = |report: &Report| report.shards.iter().find(|it| it.kind == kind && it.lease == lease).cloned();
    let rows: Vec<(&Report, Shard)> = reports.filter_map(|report| Some((report, of_kind(report)?))).collect();
    let roster = installation.roster.as_ref();
    let outlook = roster.and_then(|roster| roster.outlook(Roster::SEATED_AT, lease));
    let placement = placement(&row, lease, outlook.as_ref(), &installation, &rows);
    let candidates = outlook.into_iter().flat_map(|outlook| outlook.candidates);
    let candidates = candidates.map(|it| {
        let shard = rows.iter().find(|(report, _)| report.identity == it.identity).map(|(_, shard)| shard);
        let why = shard.and_then(|shard| shard.reason.clone().or_else(|| shard.trouble.clone()));
        let unfit = it.unfit.map(|unfit| match unfit {
            Unfit::Draining => "it stops".to_owned(),
            Unfit::NotConfigured => "its configuration has not this kind".to_owned(),
            Unfit::Blind => "it does not see the Leases".to_owned(),
            Unfit::Unable => why.unwrap_or_else(|| "it says that it cannot run it; it alone knows why".to_owned()),
        });
        let mut remarks = Vec::new();
        let mut remark = |holds: bool, what: &str| {
            if holds {
                remarks.push(what.to_owned());
            }
        };
        remark(!it.newest, "of an older generation");
        remark(it.failing, "the kind has failed there lately");
        remark(it.avoided, "it did not take what it was given");
        remark(shard.is_some_and(|shard| shard.cache.as_deref() == Some("Filled")), "its cache is filled");
        Candidate {
            pod: pod_of(&it.identity).to_owned(),
            identity: it.identity,
            load: it.load,
            capacity: it.capacity,
            newest: it.newest,
            unfit,
            remarks,
        }
    });
    Some(Explanation {
        namespace: picture.namespace,
        placement,
        candidates: candidates.collect(),
        takeovers: takeovers(&rows),
        not_reached: picture.not_reached,
        kind: row,
    })
}

fn placement(
    row: &Kind,
    lease: &str,
    outlook: Option<&Outlook>,
    installation: &Installation,
    rows: &[(&Report, Shard)],
) -> Placement {
    let nothing =
        |next: &str, waits: Vec<String>| Placement { target: None, successor: None, next: next.to_owned(), waits };
    let Some((_, holding, _)) = installation.shards.get(lease) else {
        let blocked = row.reasons.iter().map(|reason| reason.message.clone()).collect();
        return nothing("It has no Lease yet: the first replica that can run it makes one.", blocked);
    };
    let Some(outlook) = outlook else {
        return nothing("No replica is there that could have it.", Vec::new());
    };
    let holder = holding.holder.as_deref();
    let stays = outlook.stays.as_deref();
    let target = if holder.is_some() && stays == holder { outlook.balanced.as_deref() } else { stays };
    let called = |identity: &str| pod_of(identity).to_owned();
    let mut waits = Vec::new();
    let next = match (holder, target) {
        (Some(holder), None) if !installation.members.iter().any(|member| member.identity == holder) => {
            format!("It stays with {holder}, which is no replica that is there, until the Lease expires.")
        }
        (_, None) => "No replica can have it.".to_owned(),
        (Some(holder), Some(target)) if holder == target => match &holding.wanted {
            Some(wanted) => format!("It stays where it is: hand-over has asked for {wanted}."),
            None => "It stays where it is: no move would bring the loads of two replicas closer.".to_owned(),
        },
        (Some(holder), Some(target)) => {
            let held_by = rows.iter().find(|(report, _)| report.identity == holder);
            if holding.successor.as_deref() == Some(target) {
                waits.push(format!(
                    "{} has named it, and waits until its cache is filled, and for what runs",
                    called(holder)
                ));
            } else {
                waits.extend(why_not_yet(holder, held_by.map(|(report, _)| *report), installation, lease));
            }
            let why = if stays == Some(holder) { "for balance" } else { "because its holder gives it up" };
            format!("It goes to {} {why}.", called(target))
        }
        (None, Some(target)) => {
            let of_target = rows.iter().find(|(report, _)| report.identity == target).map(|(_, shard)| shard);
            waits.extend(of_target.and_then(|shard| shard.reason.clone().or_else(|| shard.trouble.clone())));
            if let Some(seconds) = of_target.and_then(|shard| shard.cooling_for_seconds) {
                waits.push(format!("{} tries again in {}", called(target), text::duration(seconds)));
            }
            format!("{} is to take it.", called(target))
        }
    };
    if row.state.verdict() != Verdict::Led {
        let known: Vec<_> = row.reasons.iter().map(|reason| reason.message.clone()).collect();
        waits.extend(
            known
                .into_iter()
                .filter(|known| !waits.iter().any(|wait| known.ends_with(wait.as_str())))
                .collect::<Vec<_>>(),
        );
    }
    Placement { target: target.map(str::to_owned), successor: outlook.successor.clone(), next, waits }
}

/// What the holder waits for before it moves a kind for balance.
fn why_not_yet(holder: &str, report: Option<&Report>, installation: &Installation, lease: &str) -> Vec<String> {
    let mut waits = Vec::new();
    match report.map(|report| report.waits.as_ref()) {
        Some(Some(told)) => waits.extend(told.iter().map(|wait| match wait.for_seconds {
            Some(seconds) => format!("{}: {} more", wait.message, text::duration(seconds)),
            None => wait.message.clone(),
        })),
        Some(None) => waits.push(format!("{} is of a version that does not say what it waits for", pod_of(holder))),
        None => waits.push(format!("{} was not reached: what it waits for is not known", pod_of(holder))),
    }
    let ours = installation.shards.iter().filter(|(name, (_, holding, _))| {
        name.as_str() != lease && holding.holder.as_deref() == Some(holder) && holding.successor.is_some()
    });
    if let Some((name, _)) = ours.into_iter().next() {
        waits.push(format!("{} is handing {name} over, and moves one kind at a time", pod_of(holder)));
    }
    waits
}
