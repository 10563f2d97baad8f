//! What follows from what, between the parts; each part has tests of its own, and the whole is simulated in `tests/it`.

use super::*;
use crate::{
    config::{Rebalance, StandbyMode},
    protocol::{
        event::{Answer, Ending, Hearing, Loss, Request, Rival, Verdict, Watch},
        lease::{Purpose, Record, Role, Version},
        slot::{Outcome, State},
    },
};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: &str = "widget.example.com";
const KIND: &str = "Widget.example.com";
const ME: &str = "me_1";

/// One replica with one kind, and the hands of the test as its server.
struct Stage {
    replica: Replica,
    now: Moment,
    version: u64,
    /// Requests that are not answered.
    sent: Vec<(RequestId, Request)>,
    /// What it did besides, since the last look.
    done: Vec<Effect>,
}

impl Stage {
    fn new() -> Self {
        let spec =
            ShardSpec { lease: LEASE.to_owned(), kind: KIND.to_owned(), weight: 1, standby: StandbyMode::Successor };
        let setup = Setup {
            identity: ME.to_owned(),
            pod: "me".to_owned(),
            pod_uid: None,
            namespace: "ns".to_owned(),
            instance: "prod".to_owned(),
            generation: String::new(),
            capacity: 1,
            timings: Timings {
                lease_duration: 15 * SECOND,
                renew_deadline: 10 * SECOND,
                retry_period: 2 * SECOND,
                request_timeout: 2 * SECOND,
            },
            rules: Rules {
                rebalance: Rebalance::Automatic,
                settle: 5 * SECOND,
                grace: 2 * SECOND,
                lease_duration: 15 * SECOND,
            },
            drain_timeout: 5 * SECOND,
            specs: vec![spec],
        };
        let now = Moment::after_origin(1000 * SECOND);
        let (replica, effects) = Replica::new(setup, now);
        let mut stage = Self { replica, now, version: 10, sent: Vec::new(), done: Vec::new() };
        stage.take(effects);
        stage
    }

    /// One that has seen these Leases, and can run its kind.
    fn seeing(leases: Vec<Record>) -> Self {
        let mut stage = Self::new();
        stage.on(Event::Watched(Watch::Listed(leases)));
        stage.on(Event::Judged(0, Verdict::Runnable));
        stage
    }

    /// One that leads since now.
    fn leading() -> Self {
        let mut stage = Self::seeing(Vec::new());
        let stored = stage.store();
        stage.on(Event::Watched(Watch::Stored(stored)));
        assert_eq!(stage.replica.shards()[0].state(), State::Running);
        stage.done.clear();
        stage
    }

    fn on(&mut self, event: Event) {
        let effects = self.replica.on(event, self.now);
        self.take(effects);
        assert!(self.replica.next_wake() > self.now, "it would be woken again and again");
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(id, request) => self.sent.push((id, request)),
                effect => self.done.push(effect),
            }
        }
    }

    /// Time passes, and renewals are answered.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.replica.next_wake() <= until {
            self.now = self.replica.next_wake();
            self.on(Event::Woken);
            let renews = |(_, request): &(RequestId, Request)| match request {
                Request::Update { record, purpose } => record.name == LEASE && *purpose == Purpose::Renew,
                _ => false,
            };
            if self.sent.iter().any(renews) {
                self.store();
            }
        }
        self.now = until;
    }

    /// The write of the kind's Lease that waits for its answer.
    fn written(&mut self) -> Option<(RequestId, Record, Purpose)> {
        let of_kind = |(_, request): &(RequestId, Request)| match request {
            Request::Create { record, .. } | Request::Update { record, .. } => record.name == LEASE,
            _ => false,
        };
        let at = self.sent.iter().position(of_kind)?;
        match self.sent.remove(at) {
            (id, Request::Create { record, purpose } | Request::Update { record, purpose }) => {
                Some((id, record, purpose))
            }
            _ => None,
        }
    }

    /// The server stores it and answers; the watch has not shown it.
    fn store(&mut self) -> Record {
        let (id, record, _) = self.written().expect("a write of the kind's Lease");
        self.version += 10;
        let version = Version { uid: "u".to_owned(), resource_version: self.version.to_string() };
        let stored = Record { version, ..record };
        self.on(Event::Answered(id, Answer::Stored(stored.clone())));
        stored
    }

    fn answer(&mut self, which: impl Fn(&Request) -> bool, answer: Answer) {
        let at = self.sent.iter().position(|(_, request)| which(request)).expect("such a request");
        let (id, _) = self.sent.remove(at);
        self.on(Event::Answered(id, answer));
    }

    fn starts(&self) -> bool {
        self.done.iter().any(|effect| matches!(effect, Effect::Start { .. }))
    }

    fn notes(&self) -> Vec<&Notice> {
        self.done
            .iter()
            .filter_map(|effect| if let Effect::Note(notice) = effect { Some(notice) } else { None })
            .collect()
    }
}

fn shard(name: &str, version: u64, holder: Option<&str>) -> Record {
    Record {
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        version: Version { uid: format!("uid of {name}"), resource_version: version.to_string() },
        instance: Some("prod".to_owned()),
        role: Role::Shard,
        holder: holder.map(str::to_owned),
        duration: Some(15 * SECOND),
        kind: Some(KIND.to_owned()),
        ..Record::default()
    }
}

fn member(name: &str, version: u64, change: impl FnOnce(&mut Profile)) -> Record {
    let mut profile =
        Profile { pod: name.to_owned(), capacity: 1, shards: [LEASE].into_iter().collect(), ..Profile::default() };
    change(&mut profile);
    Record {
        role: Role::Replica,
        kind: None,
        profile: Some(profile),
        ..shard(&format!("member-{name}"), version, Some(&format!("{name}_1")))
    }
}

#[test]
fn a_won_term_begins_when_the_watch_has_shown_its_write_and_its_fence_opens_first() {
    let mut stage = Stage::seeing(Vec::new());
    let stored = stage.store();
    assert!(!stage.starts(), "another Lease of the kind may have been taken before");
    stage.on(Event::Watched(Watch::Stored(stored)));
    let order: Vec<_> =
        stage.done.iter().filter(|it| matches!(it, Effect::Extend(..) | Effect::Start { .. })).collect();
    assert!(matches!(order[..], [Effect::Extend(0, 1, _), Effect::Start { shard: 0, .. }]), "{order:?}");
}

#[test]
fn without_the_watch_the_leases_are_listed_before_a_term_begins() {
    let mut stage = Stage::seeing(Vec::new());
    stage.on(Event::Watched(Watch::Failed("it is down".to_owned())));
    stage.store();
    assert!(!stage.starts());
    stage.answer(|request| *request == Request::List, Answer::Unanswered("no answer".to_owned()));
    assert!(!stage.starts());
    stage.pass(SECOND);
    stage.answer(|request| *request == Request::List, Answer::Listed(Vec::new()));
    assert!(stage.starts());
}

#[test]
fn a_watch_that_lags_delays_a_term_by_half_a_second() {
    let mut stage = Stage::seeing(Vec::new());
    stage.store();
    stage.pass(CONFIRM);
    stage.answer(|request| *request == Request::List, Answer::Listed(Vec::new()));
    assert!(stage.starts());
}

#[test]
fn a_kind_is_not_led_while_another_lease_of_it_is_held() {
    let mut stage = Stage::seeing(vec![shard("old", 5, Some("other_1"))]);
    assert_eq!(stage.written(), None);
    let rival = Rival { namespace: "ns".to_owned(), name: "old".to_owned(), holder: "other_1".to_owned() };
    assert!(stage.notes().contains(&&Notice::Rival(0, Some(rival))));
    assert!(stage.replica.profile().unable.contains(LEASE), "no replica hands it to us");
    stage.on(Event::Watched(Watch::Stored(shard("old", 6, None))));
    assert!(stage.written().is_some());
}

#[test]
fn of_two_that_take_one_kind_at_once_the_later_gives_way() {
    let mut stage = Stage::seeing(Vec::new());
    let stored = stage.store();
    let earlier = stage.version - 1;
    stage.on(Event::Watched(Watch::Stored(shard("old", earlier, Some("other_1")))));
    stage.on(Event::Watched(Watch::Stored(stored)));
    assert!(!stage.starts());
    assert!(matches!(stage.written(), Some((_, Record { holder: None, .. }, Purpose::Release))));

    let mut first = Stage::leading();
    let later = first.version + 1;
    first.on(Event::Watched(Watch::Stored(shard("old", later, Some("other_1")))));
    assert_eq!(first.replica.shards()[0].state(), State::Running, "the other one gives way");
}

#[test]
fn a_refused_acquisition_is_published_and_tried_again_later() {
    let mut stage = Stage::seeing(Vec::new());
    let (id, ..) = stage.written().unwrap();
    stage.on(Event::Answered(id, Answer::Refused("not for you".to_owned())));
    assert!(stage.replica.profile().unable.contains(LEASE));
    assert_eq!(stage.replica.shards()[0].trouble(), Some("not for you"));
    stage.pass(SECOND);
    assert_eq!(stage.written(), None);
    stage.pass(SECOND);
    stage.answer(|it| matches!(it, Request::Get { lease } if lease == LEASE), Answer::Found(None));
    assert!(stage.written().is_some());
}

#[test]
fn a_grant_that_has_run_out_when_its_answer_comes_begins_nothing() {
    let mut stage = Stage::seeing(Vec::new());
    stage.now = stage.now + 20 * SECOND;
    let stored = stage.store();
    stage.on(Event::Watched(Watch::Stored(stored)));
    assert!(!stage.starts());
}

#[test]
fn a_term_that_is_deaf_for_long_is_given_to_a_replica_that_hears() {
    let mut stage = Stage::leading();
    stage.on(Event::Heard(0, 1, Hearing::Deaf("the watch broke".to_owned())));
    stage.pass(9 * SECOND);
    assert!(!stage.replica.profile().unable.contains(LEASE));
    stage.pass(SECOND);
    assert!(stage.replica.profile().unable.contains(LEASE));
    assert_eq!(stage.replica.shards()[0].state(), State::Running, "there is no other replica");
    stage.version += 10;
    let other = member("zed", stage.version, |_| {});
    stage.on(Event::Watched(Watch::Stored(other)));
    assert!(stage.notes().contains(&&Notice::SuccessorNamed(0, "zed_1".to_owned())), "{:?}", stage.notes());
}

#[test]
fn a_term_that_hears_again_in_time_stays() {
    let mut stage = Stage::leading();
    stage.on(Event::Heard(0, 1, Hearing::Deaf("the watch broke".to_owned())));
    stage.pass(9 * SECOND);
    stage.on(Event::Heard(0, 1, Hearing::Hears));
    stage.pass(9 * SECOND);
    assert!(!stage.replica.profile().unable.contains(LEASE));
}

#[test]
fn what_another_replica_has_become_unable_to_run_is_asked_about() {
    let mut stage = Stage::seeing(vec![member("zed", 5, |_| {})]);
    stage.done.clear();
    stage.on(Event::Watched(Watch::Stored(member("zed", 6, |profile| profile.unable.insert(LEASE)))));
    assert!(stage.done.contains(&Effect::Ask(0)));
}

#[test]
fn a_lost_term_is_shut_before_it_is_aborted() {
    let mut stage = Stage::leading();
    stage.version += 10;
    let taken = Record {
        version: Version { uid: "u".to_owned(), resource_version: stage.version.to_string() },
        transitions: 1,
        ..shard(LEASE, 0, Some("other_1"))
    };
    stage.on(Event::Watched(Watch::Stored(taken)));
    let order: Vec<_> = stage.done.iter().filter(|it| matches!(it, Effect::Shut(..) | Effect::Abort(..))).collect();
    assert_eq!(order, [&Effect::Shut(0, 1), &Effect::Abort(0, 1)]);
    assert!(stage.notes().contains(&&Notice::Lost(0, Loss::Taken("other_1".to_owned()))));
}

#[test]
fn what_is_odd_on_a_lease_is_said_once() {
    let huge = Record { duration: Some(Duration::from_secs(99_999)), ..shard(LEASE, 5, Some("other_1")) }.bounded();
    let mut stage = Stage::seeing(vec![huge.clone()]);
    let odd = |stage: &Stage| stage.notes().iter().filter(|it| matches!(it, Notice::Odd { .. })).count();
    assert_eq!(odd(&stage), 1);
    let again = Record { version: Version { resource_version: "6".to_owned(), ..huge.version.clone() }, ..huge };
    stage.on(Event::Watched(Watch::Stored(again)));
    assert_eq!(odd(&stage), 1);
    assert_eq!(stage.replica.shards()[0].odd().len(), 1);
    stage.pass(599 * SECOND);
    assert_eq!(stage.written(), None, "it counts for as long as a configuration may say");
    stage.pass(5 * SECOND);
    assert!(stage.written().is_some());
}

#[test]
fn an_abort_is_no_clean_end() {
    let mut stage = Stage::leading();
    stage.on(Event::Signalled);
    assert!(stage.done.iter().any(|it| matches!(it, Effect::Drain(0, 1))), "no other replica can follow");
    stage.on(Event::Signalled);
    assert!(stage.done.contains(&Effect::Abort(0, 1)));
    stage.on(Event::TermEnded { shard: 0, term: 1, outcome: Outcome::Aborted, unanswered: false });
    stage.store();
    let membership = |it: &Request| !matches!(it, Request::List);
    while stage.sent.iter().any(|(_, request)| membership(request)) {
        let gone = stage.sent.iter().any(|(_, request)| matches!(request, Request::Get { .. }));
        stage.answer(membership, if gone { Answer::Found(None) } else { Answer::Conflict });
        stage.pass(SECOND);
    }
    let undrained = Ending::Undrained(vec![LEASE.to_owned()]);
    assert!(stage.done.contains(&Effect::Exit(undrained)), "{:?}", stage.done);
}
