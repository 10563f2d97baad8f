//! Events on Leases: who leads a kind now, who has lost it and why, for `kubectl describe lease` and for programs that collect
//! events. Nothing ever waits for one.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::mpsc, time::timeout};
use tracing::debug;

use super::{problem::describe, supervisor::why, telemetry::of_stranger, told};
use crate::protocol::{
    event::{Notice, ShardIndex},
    history::Reason,
};

/// Events that wait to be published. A replica that takes over a thousand kinds at once says so of the first ones: what is lost
/// is in the log.
const QUEUED: usize = 64;

/// An event that takes longer is given up: the next one waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The API server refuses longer notes.
const LONGEST_NOTE: usize = 1000;

/// The reason of an event that tells of a takeover.
pub(super) const ACQUIRED: &str = "Acquired";

/// What to say on a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) lease: String,
    pub(super) uid: Option<String>,
    pub(super) warns: bool,
    pub(super) reason: &'static str,
    /// Of a takeover how it came about: two that came about alike are one event with a count, and others are not.
    pub(super) action: &'static str,
    pub(super) note: String,
}

/// A Lease, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) kind: String,
    pub(super) lease: String,
    pub(super) uid: Option<String>,
}

/// What a notice is to those who read events, if anything. Of a takeover both replicas tell: who has the Lease now, and who
/// has handed it over.
pub(super) fn of(
    notice: &Notice,
    me: &str,
    namespace: &str,
    subject: impl Fn(ShardIndex) -> Option<Subject>,
) -> Option<Announcement> {
    let (shard, warns, reason) = match notice {
        Notice::TakenOver(shard, takeover) if takeover.to == me => {
            let is_a_failure = !matches!(takeover.reason, Reason::Created | Reason::Released(_) | Reason::Restarted);
            (*shard, is_a_failure, ACQUIRED)
        }
        Notice::TakenOver(shard, takeover)
            if takeover.from.as_deref() == Some(me) && matches!(takeover.reason, Reason::Released(_)) =>
        {
            (*shard, false, "HandedOver")
        }
        Notice::Lost(shard, _) => (*shard, true, "Lost"),
        Notice::Stranger(shard, Some(_)) => (*shard, true, "ForeignHolder"),
        _ => return None,
    };
    let Subject { kind, lease, uid } = subject(shard)?;
    let note = match notice {
        Notice::TakenOver(_, takeover) => {
            let (_, how) = told::reason(takeover.reason);
            let from = takeover.from.as_deref().unwrap_or(UNKNOWN);
            let gap = takeover.without_leader.map(|gap| format!("{GAP}{:.3} s", gap.as_secs_f64()));
            let gap = gap.unwrap_or_default();
            let term = takeover.token.rsplit('/').next().unwrap_or_default();
            format!("{}{LEADS}{kind}{AFTER}{from}: {how}{gap}{TERM}{term}", takeover.to)
        }
        Notice::Lost(_, loss) => format!("{me} has lost {kind}: {}", why(loss)),
        Notice::Stranger(_, Some(holder)) => of_stranger(holder, namespace, &lease),
        _ => return None,
    };
    let action = match notice {
        Notice::TakenOver(_, takeover) => told::reason(takeover.reason).0,
        _ => "Elect",
    };
    Some(Announcement { lease, uid, warns, reason, action, note })
}

/// What the note on a takeover is made of, to be read again by a replica that was not there.
const LEADS: &str = " leads ";
const AFTER: &str = " after ";
const UNKNOWN: &str = "no replica that is known";
const GAP: &str = "; no replica led for ";
const TERM: &str = "; term ";

/// What a note says of a takeover.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    pub(super) from: Option<String>,
    pub(super) to: String,
    pub(super) how: String,
    /// In seconds.
    pub(super) without_leader: Option<f64>,
    /// `leaseTransitions` of it.
    pub(super) term: i32,
}

/// Reads the note on a takeover; `None` for any other.
pub(super) fn read(note: &str) -> Option<Told> {
    let (to, rest) = note.split_once(LEADS)?;
    let (_kind, rest) = rest.split_once(AFTER)?;
    let (from, rest) = rest.split_once(": ")?;
    let (rest, term) = rest.rsplit_once(TERM)?;
    let (how, gap) = rest.rsplit_once(GAP).map_or((rest, None), |(how, gap)| (how, gap.strip_suffix(" s")));
    Some(Told {
        from: (from != UNKNOWN).then(|| from.to_owned()),
        to: to.to_owned(),
        how: how.to_owned(),
        without_leader: gap.and_then(|gap| gap.parse().ok()),
        term: term.parse().ok()?,
    })
}

/// Takes announcements, and never waits.
#[derive(Clone, Debug)]
pub(super) struct Announcer(mpsc::Sender<Announcement>);

impl Announcer {
    /// With what [`publish`] takes.
    pub(super) fn new() -> (Self, mpsc::Receiver<Announcement>) {
        let (send, receive) = mpsc::channel(QUEUED);
        (Self(send), receive)
    }

    pub(super) fn say(&self, announcement: Announcement) {
        if self.0.try_send(announcement).is_err() {
            debug!("an event on a Lease is left out: others wait to be published");
        }
    }
}

/// Publishes one after the other, for as long as there is an announcer. An event that says the same as one of the last minutes
/// becomes a count on that one. Without the permission the log alone has it.
pub(super) async fn publish(
    client: Client,
    identity: String,
    namespace: String,
    mut said: mpsc::Receiver<Announcement>,
) {
    let reporter = Reporter { controller: "leasehold".to_owned(), instance: Some(identity) };
    let recorder = Recorder::new(client, reporter);
    while let Some(Announcement { lease, uid, warns, reason, action, note }) = said.recv().await {
        let about = ObjectReference {
            api_version: Some("coordination.k8s.io/v1".to_owned()),
            kind: Some("Lease".to_owned()),
            name: Some(lease),
            namespace: Some(namespace.clone()),
            uid,
            ..ObjectReference::default()
        };
        let event = Event {
            type_: if warns { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note[..note.floor_char_boundary(LONGEST_NOTE)].to_owned()),
            action: action.to_owned(),
            secondary: None,
        };
        match timeout(PATIENCE, recorder.publish(&event, &about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(reason, "no event on the Lease: {}", describe(&error)),
            Err(_elapsed) => debug!(reason, "an event on a Lease is given up"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        event::Loss,
        history::{Release, Takeover},
        moment::Moment,
    };

    fn subject(_: ShardIndex) -> Option<Subject> {
        let (kind, lease) = ("Widget.example.com".to_owned(), "widget.example.com".to_owned());
        Some(Subject { kind, lease, uid: Some("u".to_owned()) })
    }

    fn taken(from: Option<&str>, to: &str, reason: Reason) -> Notice {
        let (from, to) = (from.map(str::to_owned), to.to_owned());
        let without_leader = Some(Duration::from_millis(14_500));
        Notice::TakenOver(
            0,
            Takeover { at: Moment::default(), from, to, token: "u/3".to_owned(), reason, without_leader },
        )
    }

    #[test]
    fn those_concerned_tell_of_a_takeover_and_a_failure_is_a_warning() {
        let said = |me: &str, notice: Notice| of(&notice, me, "ns", subject).map(|it| (it.warns, it.reason, it.note));
        let expired = || taken(Some("a_1"), "b_1", Reason::Expired);
        let note = "b_1 leads Widget.example.com after a_1: its holder fell silent for the lease duration; no replica led for 14.500 s; term 3";
        assert_eq!(said("b_1", expired()), Some((true, "Acquired", note.to_owned())));
        assert_eq!(said("a_1", expired()), None, "it is silent, or has told of its loss");
        assert_eq!(said("c_1", expired()), None);
        let stopping = || taken(Some("a_1"), "b_1", Reason::Released(Release::Stopping));
        assert_eq!(said("b_1", stopping()).map(|(warns, reason, _)| (warns, reason)), Some((false, "Acquired")));
        assert_eq!(said("a_1", stopping()).map(|(warns, reason, _)| (warns, reason)), Some((false, "HandedOver")));
        let lost = said("a_1", Notice::Lost(0, Loss::Taken("b_1".to_owned())));
        assert_eq!(lost, Some((true, "Lost", "a_1 has lost Widget.example.com: b_1 holds the Lease now".to_owned())));
        assert_eq!(of(&Notice::Stopping, "a_1", "ns", subject), None);
        assert_eq!(of(&expired(), "b_1", "ns", |_| None), None, "its lock is no Lease");
    }

    #[test]
    fn what_a_note_says_of_a_takeover_is_read_again() {
        for reason in [Reason::Expired, Reason::Created, Reason::Released(Release::Untold)] {
            for from in [Some("a_1"), None] {
                let note = of(&taken(from, "b_1", reason), "b_1", "ns", subject).unwrap().note;
                let told = Told {
                    from: from.map(str::to_owned),
                    to: "b_1".to_owned(),
                    how: told::reason(reason).1.to_owned(),
                    without_leader: Some(14.5),
                    term: 3,
                };
                assert_eq!(read(&note), Some(told), "{note}");
            }
        }
        assert_eq!(read("a_1 has lost Widget.example.com: b_1 holds the Lease now"), None);
    }

    #[test]
    fn what_cannot_be_published_in_time_is_left_out() {
        let (announcer, mut said) = Announcer::new();
        let announcement = of(&taken(None, "a_1", Reason::Created), "a_1", "ns", subject).unwrap();
        (0..1000).for_each(|_| announcer.say(announcement.clone()));
        let mut count = 0;
        while said.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, QUEUED);
    }
}
