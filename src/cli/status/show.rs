//! A picture in words and columns. Pure.

use leasehold::ops::{
    picture::{Kind, Picture, Replica, State},
    report::Takeover,
};

use super::{
    explain::Explanation,
    text::{self, duration, name, sentence},
};

/// A cell without a value.
const NONE: &str = "-";

fn or_none(value: Option<String>) -> String {
    value.unwrap_or_else(|| NONE.to_owned())
}

fn state(state: State) -> String {
    format!("{state:?}")
}

/// The table of kinds and that of replicas, and sentences about what is not as it should be.
pub(super) fn status(picture: &Picture, wide: bool) -> String {
    let mut shown = summary(picture);
    shown.push('\n');
    let mut head = vec!["KIND", "LEADER", "SINCE", "STATE", "WEIGHT", "OBJECTS", "RATE", "ERRORS", "LAST TAKEOVER"];
    if wide {
        head.extend(["WAITING", "OLDEST", "STANDBY", "LEASE", "GROUP", "HOLDER", "TOKEN"]);
    }
    shown += &text::table(&head, &picture.kinds.iter().map(|kind| kind_row(kind, wide)).collect::<Vec<_>>());
    shown.push('\n');
    let mut head = vec!["REPLICA", "GENERATION", "STATE", "KINDS", "LOAD", "MEMORY"];
    if wide {
        head.extend(["CAPACITY", "VERSION", "NODE", "IDENTITY"]);
    }
    shown +=
        &text::table(&head, &picture.replicas.iter().map(|replica| replica_row(replica, wide)).collect::<Vec<_>>());
    let remarks = remarks(picture);
    if !remarks.is_empty() {
        shown.push('\n');
        remarks.iter().for_each(|remark| shown += &format!("{remark}\n"));
    }
    shown
}

fn summary(picture: &Picture) -> String {
    let (led, all) = (picture.led(), picture.kinds.len());
    let ready = picture.replicas.iter().filter(|replica| replica.state == "Ready").count();
    let of = picture.replicas.len();
    let (kinds, replicas) = (share(led, all, "kinds led"), share(ready, of, "replicas ready"));
    format!("{}: {kinds}, {replicas}\n", name(&picture.namespace))
}

fn share(part: usize, whole: usize, of_what: &str) -> String {
    format!("{part} of {whole} {of_what}")
}

fn kind_row(kind: &Kind, wide: bool) -> Vec<String> {
    let since = match (kind.since_seconds, kind.without_leader_seconds) {
        (_, Some(seconds)) => format!("none for {}", duration(seconds)),
        (since, None) => or_none(since.map(duration)),
    };
    let mut row = vec![
        name(&kind.kind),
        or_none(kind.leader.as_deref().map(name)),
        since,
        state(kind.state),
        or_none(kind.weight.map(|weight| weight.to_string())),
        or_none(kind.objects.map(|objects| objects.to_string())),
        or_none(kind.reconciles_per_second.map(text::rate)),
        or_none(
            kind.recent_failures.map(|failures| if failures == 0 { "0".to_owned() } else { format!("{failures}/min") }),
        ),
        or_none(kind.last_takeover.as_ref().map(last_takeover)),
    ];
    if wide {
        row.extend([
            or_none(kind.waiting.map(|waiting| waiting.to_string())),
            or_none(kind.oldest_waits_seconds.map(duration)),
            if kind.standby.is_empty() { NONE.to_owned() } else { name(&kind.standby.join(",")) },
            name(&kind.lease),
            or_none(kind.group.as_deref().map(name)),
            or_none(kind.holder.as_deref().map(text::plain)),
            or_none(kind.token.as_deref().map(text::plain)),
        ]);
    }
    row
}

fn last_takeover(takeover: &Takeover) -> String {
    let gap = takeover.without_leader_seconds.map(|seconds| format!(", {} without a leader", duration(seconds)));
    format!("{} ago: {}{}", duration(takeover.seconds_ago), name(&takeover.reason), gap.unwrap_or_default())
}

fn replica_row(replica: &Replica, wide: bool) -> Vec<String> {
    let age = match replica.newest {
        Some(false) => " (old)",
        _ => "",
    };
    let generation = if replica.generation.is_empty() { NONE.to_owned() } else { name(&replica.generation) };
    let mut row = vec![
        name(&replica.pod),
        format!("{generation}{age}"),
        name(&replica.state),
        replica.kinds.to_string(),
        replica.load.to_string(),
        or_none(replica.memory_bytes.map(text::memory)),
    ];
    if wide {
        row.extend([
            or_none(replica.capacity.map(|capacity| capacity.to_string())),
            or_none(replica.version.as_deref().map(name)),
            or_none(replica.node.as_deref().map(name)),
            or_none(replica.identity.as_deref().map(text::plain)),
        ]);
    }
    row
}

/// Why a kind is not led, in one sentence.
fn why(kind: &Kind) -> Option<String> {
    let holder = kind.holder.as_deref().map(name).unwrap_or_default();
    Some(match kind.state {
        State::Leading | State::Draining | State::Renewed => return None,
        State::Deaf => "its leader does not hear of changes".to_owned(),
        State::Held => format!("{holder} holds its Lease and was not reached; --check looks whether it renews"),
        State::Starting => format!("{holder} holds its Lease and does not work on it yet"),
        State::Silent => format!("{holder} holds its Lease and has not renewed it for as long as that counts"),
        State::Free => "no replica holds its Lease".to_owned(),
        State::Blocked => "no replica can lead it".to_owned(),
        State::CoolingDown => "no replica holds its Lease, and one waits after a failure".to_owned(),
        State::ForeignHolder => format!("{holder} holds its Lease and is no replica of this installation"),
        State::SeveralLeaders => "more than one replica says that it leads; look again".to_owned(),
        State::Unknown => "it has no Lease, and not every replica was reached".to_owned(),
    })
}

fn remarks(picture: &Picture) -> Vec<String> {
    let mut remarks = Vec::new();
    for kind in &picture.kinds {
        let called = name(&kind.kind);
        let why = why(kind);
        if let Some(why) = &why {
            remarks.push(format!("{called}: {why}"));
        }
        for reason in &kind.reasons {
            let begin = if why.is_some() { "  ".to_owned() } else { format!("{called}: ") };
            remarks.push(format!("{begin}{} ({})", sentence(&reason.message), pods(&reason.replicas)));
        }
    }
    for replica in &picture.replicas {
        if let Some(reason) = &replica.reason {
            remarks.push(format!("{}: {}: {}", name(&replica.pod), name(&replica.state), sentence(reason)));
        }
    }
    if picture.kinds_without_lease > 0 {
        let count = picture.kinds_without_lease;
        remarks.push(format!(
            "replicas that were not reached are configured for {count} more, of which there is no Lease: never led, or locked by a ConfigMap"
        ));
    }
    if !picture.not_reached.is_empty() {
        remarks.push("not reached:".to_owned());
        remarks.extend(picture.not_reached.iter().map(|what| format!("  {}", sentence(what))));
    }
    remarks
}

/// So many names in a sentence.
const NAMED: usize = 3;

fn pods(all: &[String]) -> String {
    let first = all.iter().take(NAMED).map(|pod| name(pod)).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// One line for a kind, for a stream of changes.
pub(super) fn line(kind: &Kind) -> String {
    let leader = kind.leader.as_deref().map(name).unwrap_or_else(|| NONE.to_owned());
    let takeover = kind.last_takeover.as_ref().filter(|takeover| kind.holder.as_ref() == Some(&takeover.to));
    let takeover = takeover.map(|takeover| format!("; taken over {}", last_takeover(takeover))).unwrap_or_default();
    let why = why(kind).map(|why| format!("; {why}")).unwrap_or_default();
    format!("{} {} {leader}{why}{takeover}", name(&kind.kind), state(kind.state))
}

/// All that is known of one kind.
pub(super) fn explanation(told: &Explanation) -> String {
    let kind = &told.kind;
    let weight = kind.weight.map(|weight| format!(", weight {weight}")).unwrap_or_default();
    let group = kind.group.as_deref().map(|group| format!(", group {}", name(group))).unwrap_or_default();
    let mut shown =
        format!("{}: Lease {}/{}{group}{weight}\n", name(&kind.kind), name(&told.namespace), name(&kind.lease));
    let since = kind.since_seconds.map(|seconds| format!(" since {}", duration(seconds))).unwrap_or_default();
    shown += &match (&kind.leader, why(kind)) {
        (Some(leader), None) => format!("  led by {}{since} ({})\n", name(leader), state(kind.state)),
        (_, why) => {
            let for_long = kind.without_leader_seconds.map(|seconds| format!(", for {}", duration(seconds)));
            format!("  {}: {}{}\n", state(kind.state), why.unwrap_or_default(), for_long.unwrap_or_default())
        }
    };
    shown += "\nWhy it is there\n";
    shown += &match told.takeovers.last() {
        Some(last) if kind.holder.is_none() || kind.holder.as_ref() == Some(&last.to) => format!("  {}\n", came(last)),
        _ => "  no replica that was reached has seen how it came there\n".to_owned(),
    };
    shown += &format!("\nWhat placement would do\n  {}\n", sentence(&told.placement.next));
    told.placement.waits.iter().for_each(|wait| shown += &format!("  not yet: {}\n", sentence(wait)));
    if let Some(successor) = &told.placement.successor {
        shown +=
            &format!("  if that one goes: {}\n", name(successor.rsplit_once('_').map_or(successor, |(pod, _)| pod)));
    }
    if !kind.reasons.is_empty() {
        shown += "\nWhat stands in the way\n";
        for reason in &kind.reasons {
            shown += &format!("  {} ({})\n", sentence(&reason.message), pods(&reason.replicas));
        }
    }
    shown += "\nReplicas\n";
    let rows = told.candidates.iter().map(|it| {
        let can = it.unfit.as_deref().map_or_else(|| "yes".to_owned(), |why| format!("no: {}", sentence(why)));
        let remarks = if it.remarks.is_empty() { String::new() } else { format!(" ({})", it.remarks.join(", ")) };
        vec![format!("  {}", name(&it.pod)), format!("{}/{}", it.load, it.capacity), format!("{can}{remarks}")]
    });
    shown += &text::table(&["  REPLICA", "LOAD/CAPACITY", "CAN HAVE IT"], &rows.collect::<Vec<_>>());
    shown += "\nThe last takeovers\n";
    for takeover in told.takeovers.iter().rev() {
        shown += &format!("  {}\n", came(takeover));
    }
    if told.takeovers.is_empty() {
        shown += "  none was seen\n";
    }
    if !told.not_reached.is_empty() {
        shown += "\nNot reached\n";
        told.not_reached.iter().for_each(|what| shown += &format!("  {}\n", sentence(what)));
    }
    shown
}

fn came(takeover: &Takeover) -> String {
    let pod = |identity: &str| name(identity.rsplit_once('_').map_or(identity, |(pod, _)| pod));
    let from = takeover.from.as_deref().map(|from| format!("from {} ", pod(from))).unwrap_or_default();
    let gap = takeover.without_leader_seconds.map(|seconds| format!("; {} without a leader", duration(seconds)));
    format!(
        "{} ago {from}to {}: {}: {}{}",
        duration(takeover.seconds_ago),
        pod(&takeover.to),
        name(&takeover.reason),
        sentence(&takeover.message),
        gap.unwrap_or_default()
    )
}
