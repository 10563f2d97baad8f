//! What follows from what, between the parts; each part has tests of its own, and the whole is simulated in `tests/it`.

use super::*;
use crate::{
    config::{LockKind, Rebalance, StandbyMode},
    protocol::{
        event::{Answer, Ending, Hearing, Loss, Request, Rival, Verdict, Watch},
        lease::{Purpose, Record, Role, Version},
        slot::{Outcome, State},
    },
};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: &str = "widget.example.com";
const KIND: &str = "Widget.example.com";
const OTHER: &str = "Gadget.example.com";
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
        Self::of(&[KIND], OnLoss::Reelect)
    }

    /// With these kinds, which share the Lease.
    fn of(kinds: &[&str], on_loss: OnLoss) -> Self {
        Self::with(kinds, on_loss, LockKind::Lease)
    }

    fn with(kinds: &[&str], on_loss: OnLoss, lock: LockKind) -> Self {
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let spec = ShardSpec { lease: LEASE.to_owned(), lock, kinds, weight: 1, standby: StandbyMode::Successor };
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
            on_loss,
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
        Self::seeing(Vec::new()).lead()
    }

    /// One that leads two kinds in one group, and ends or does not when it loses its Lease.
    fn leading_a_group(on_loss: OnLoss) -> Self {
        let mut stage = Self::of(&[KIND, OTHER], on_loss);
        stage.on(Event::Watched(Watch::Listed(Vec::new())));
        (0..2).for_each(|kind| stage.on(Event::Judged(kind, Verdict::Runnable)));
        stage.lead()
    }

    fn lead(mut self) -> Self {
        let stage = &mut self;
        let stored = stage.store();
        stage.on(Event::Watched(Watch::Stored(stored)));
        assert_eq!(stage.replica.shards()[0].state(), State::Running);
        stage.done.clear();
        self
    }

    fn fails(&mut self, kind: KindIndex, why: &str) {
        self.on(Event::TaskEnded(kind, 1, Outcome::Failed(why.to_owned())));
    }

    fn state(&self) -> State {
        self.replica.shards()[0].state()
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
        kinds: vec![KIND.to_owned()],
        ..Record::default()
    }
}

fn member(name: &str, version: u64, change: impl FnOnce(&mut Profile)) -> Record {
    let mut profile =
        Profile { pod: name.to_owned(), capacity: 1, shards: [LEASE].into_iter().collect(), ..Profile::default() };
    change(&mut profile);
    Record {
        role: Role::Replica,
        kinds: Vec::new(),
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
fn a_term_that_is_lost_before_it_is_confirmed_keeps_no_later_one_from_beginning() {
    // The process stood still from the answer on until the grant had run out.
    let mut paused = Stage::seeing(Vec::new());
    let stored = paused.store();
    paused.now = paused.now + 20 * SECOND;
    paused.on(Event::Woken);
    let read = |request: &Request| matches!(request, Request::Get { lease } if lease == LEASE);
    if paused.sent.iter().any(|(_, request)| read(request)) {
        paused.answer(read, Answer::Found(Some(stored)));
    }
    let again = paused.store();
    paused.on(Event::Watched(Watch::Stored(again)));
    assert!(paused.starts());

    // It stood still while the Leases were listed for it, and reads the list first.
    let mut listing = Stage::seeing(Vec::new());
    let stored = listing.store();
    listing.pass(CONFIRM);
    listing.now = listing.now + 20 * SECOND;
    listing.answer(|request| *request == Request::List, Answer::Listed(Vec::new()));
    listing.on(Event::Woken);
    if listing.sent.iter().any(|(_, request)| read(request)) {
        listing.answer(read, Answer::Found(Some(stored)));
    }
    let again = listing.store();
    listing.on(Event::Watched(Watch::Stored(again)));
    assert!(listing.starts());

    // Another holder took it, by a hand, and gives it back.
    let mut taken = Stage::seeing(Vec::new());
    let stored = taken.store();
    let by = |holder: Option<&str>, version: u64, transitions| Record {
        holder: holder.map(str::to_owned),
        duration: Some(if holder.is_some() { 15 * SECOND } else { SECOND }),
        version: Version { resource_version: version.to_string(), ..stored.version.clone() },
        transitions,
        ..stored.clone()
    };
    let later = taken.version;
    taken.on(Event::Watched(Watch::Stored(by(Some("stranger"), later + 1, 1))));
    assert!(!taken.starts());
    taken.version = later + 2;
    taken.on(Event::Watched(Watch::Stored(by(None, later + 2, 1))));
    let writes = |request: &Request| matches!(request, Request::Update { record, .. } if record.name == LEASE);
    let soon = taken.now + 60 * SECOND;
    while taken.now < soon && !taken.sent.iter().any(|(_, request)| writes(request)) {
        taken.pass(SECOND);
    }
    let again = taken.store();
    taken.on(Event::Watched(Watch::Stored(again)));
    assert!(taken.starts());
}

#[test]
fn a_kind_is_not_led_while_another_lease_of_it_is_held() {
    let mut stage = Stage::seeing(vec![shard("old", 5, Some("other_1"))]);
    assert_eq!(stage.written(), None);
    let rival = Rival {
        kind: KIND.to_owned(),
        namespace: "ns".to_owned(),
        name: "old".to_owned(),
        holder: "other_1".to_owned(),
        config_map: false,
    };
    assert!(stage.notes().contains(&&Notice::Rival(0, Some(rival))));
    assert!(stage.replica.profile().unable.contains(LEASE), "no replica hands it to us");
    stage.on(Event::Watched(Watch::Stored(shard("old", 6, None))));
    assert!(stage.written().is_some());
}

#[test]
fn a_term_that_gives_way_before_it_is_confirmed_is_not_woken_again_and_again() {
    let mut stage = Stage::seeing(Vec::new());
    stage.store();
    // Its renewal is on the way, so that it cannot be given back yet.
    while stage.sent.iter().all(|(_, request)| !matches!(request, Request::Update { .. })) {
        stage.now = stage.replica.next_wake();
        stage.on(Event::Woken);
        if stage.sent.iter().any(|(_, request)| *request == Request::List) {
            stage.answer(|request| *request == Request::List, Answer::Unanswered("no answer".to_owned()));
        }
    }
    stage.on(Event::Watched(Watch::Stored(shard("old", 5, Some("other_1")))));
    let until = stage.now + 5 * SECOND;
    while stage.replica.next_wake() < until {
        stage.now = stage.replica.next_wake();
        stage.on(Event::Woken);
    }
    assert!(!stage.starts());
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
    // It serves no change meanwhile, and may be deaf to what its successor says as well.
    assert_eq!(stage.replica.shards()[0].state(), State::Draining, "the successor is not waited for");
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

fn taken() -> Record {
    Record { transitions: 1, ..shard(LEASE, 50, Some("other_1")) }
}

#[test]
fn a_group_leads_when_each_of_its_kinds_can_be_reconciled() {
    let mut stage = Stage::of(&[KIND, OTHER], OnLoss::Reelect);
    stage.on(Event::Watched(Watch::Listed(Vec::new())));
    stage.on(Event::Judged(0, Verdict::Runnable));
    assert!(!stage.replica.is_ready(), "nothing was said of the other kind");
    stage.on(Event::Judged(1, Verdict::Blocked("no CRD".to_owned())));
    assert_eq!(stage.written(), None);
    assert!(stage.replica.profile().unable.contains(LEASE));
    stage.on(Event::Judged(1, Verdict::Runnable));
    let (_, record, _) = stage.written().unwrap();
    assert_eq!(record.kinds, [KIND, OTHER], "the Lease names both: they are the rivals of others");
}

#[test]
fn a_kind_that_can_no_longer_be_reconciled_drains_its_group() {
    let mut stage = Stage::leading_a_group(OnLoss::Reelect);
    stage.on(Event::Judged(1, Verdict::Blocked("no CRD".to_owned())));
    assert_eq!(stage.state(), State::Draining);
    assert_eq!(stage.notes(), [&Notice::Judged(1, Verdict::Blocked("no CRD".to_owned()))]);
}

#[test]
fn when_a_kind_of_a_group_fails_the_others_drain_and_the_group_cools_down() {
    let mut stage = Stage::leading_a_group(OnLoss::Reelect);
    stage.fails(1, "it broke");
    assert_eq!(stage.state(), State::Draining);
    assert!(stage.done.contains(&Effect::Drain(0, 1)));
    stage.on(Event::TaskEnded(0, 1, Outcome::Finished));
    stage.on(Event::TermEnded { shard: 0, term: 1, outcome: Outcome::Finished, unanswered: false });
    assert_eq!(stage.state(), State::Idle);
    let why = format!("the reconciler of {OTHER} failed: it broke");
    assert_eq!(stage.replica.shards()[0].failure(), Some(why.as_str()));
    let failed: Vec<_> = stage.notes().into_iter().filter(|it| matches!(it, Notice::Failed(..))).collect();
    assert_eq!(failed, [&Notice::Failed(1, why)], "said once, of the kind that failed");
    assert!(stage.replica.shards()[0].cooling_until(stage.now).is_some());
    assert!((0..2).all(|kind| stage.done.contains(&Effect::Ask(kind))), "it may want a CRD or a permission");
}

#[test]
fn a_kind_of_a_group_that_ends_unasked_has_failed_and_one_that_was_asked_has_not() {
    let mut stage = Stage::leading_a_group(OnLoss::Reelect);
    stage.on(Event::TaskEnded(0, 1, Outcome::Finished));
    assert_eq!(stage.state(), State::Draining);
    assert!(stage.replica.shards()[0].failure().is_some_and(|why| why.contains("ended although its term went on")));
    let mut stage = Stage::leading_a_group(OnLoss::Reelect);
    stage.on(Event::Signalled);
    stage.on(Event::TaskEnded(0, 1, Outcome::Finished));
    stage.on(Event::TaskEnded(1, 1, Outcome::Finished));
    stage.on(Event::TermEnded { shard: 0, term: 1, outcome: Outcome::Finished, unanswered: false });
    assert_eq!(stage.replica.shards()[0].failure(), None);
}

#[test]
fn others_of_a_group_that_do_not_drain_in_time_are_aborted() {
    let mut stage = Stage::leading_a_group(OnLoss::Reelect);
    stage.fails(0, "it broke");
    stage.pass(4 * SECOND);
    assert_eq!(stage.state(), State::Draining);
    stage.pass(2 * SECOND);
    assert_eq!(stage.state(), State::Aborting);
}

#[test]
fn a_group_is_deaf_when_one_of_its_kinds_is() {
    let mut stage = Stage::leading_a_group(OnLoss::Reelect);
    stage.on(Event::Heard(1, 1, Hearing::Deaf("the watch broke".to_owned())));
    stage.on(Event::Heard(0, 1, Hearing::Hears));
    stage.pass(11 * SECOND);
    assert!(stage.replica.profile().unable.contains(LEASE), "{:?}", stage.replica.profile());
    let heard: Vec<_> = stage.notes().into_iter().filter(|it| matches!(it, Notice::Heard(..))).collect();
    assert_eq!(heard, [&Notice::Heard(1, Hearing::Deaf("the watch broke".to_owned()))]);
}

#[test]
fn a_process_that_is_to_end_at_a_loss_shuts_its_fences_and_does_nothing_else() {
    let lost = |stage: &Stage| stage.done.iter().find(|it| matches!(it, Effect::Exit(_))).cloned();
    let ends = |mut stage: Stage, loss: Loss| {
        let order: Vec<_> = stage.done.drain(..).filter(|it| !matches!(it, Effect::Note(_))).collect();
        let ending = Ending::Lost { lease: LEASE.to_owned(), loss };
        assert_eq!(order, [Effect::Shut(0, 1), Effect::Exit(ending)]);
        assert!(stage.sent.iter().all(|(_, request)| !matches!(request, Request::Delete { .. })), "{:?}", stage.sent);
        let effects = stage.replica.on(Event::Woken, stage.now + SECOND);
        assert_eq!(effects, [], "it has ended");
    };
    let mut stage = Stage::leading_a_group(OnLoss::Exit);
    stage.on(Event::Watched(Watch::Stored(taken())));
    ends(stage, Loss::Taken("other_1".to_owned()));

    let mut stage = Stage::leading_a_group(OnLoss::Exit);
    stage.on(Event::Watched(Watch::Deleted(shard(LEASE, 50, Some(ME)))));
    assert_eq!(lost(&stage), None, "a read proves that it is gone");
    let reads = |request: &Request| matches!(request, Request::Get { lease } if lease == LEASE);
    stage.answer(reads, Answer::Found(None));
    ends(stage, Loss::Gone);

    let mut stage = Stage::leading_a_group(OnLoss::Exit);
    stage.now = stage.now + 10 * SECOND;
    stage.sent.clear();
    let effects = stage.replica.on(Event::Woken, stage.now);
    stage.take(effects);
    ends(stage, Loss::Deadline);

    // A planned handover and a stop are no loss; nor is one that a term which does not work has.
    let mut stage = Stage::leading_a_group(OnLoss::Exit);
    stage.on(Event::Signalled);
    stage.on(Event::Watched(Watch::Stored(taken())));
    assert_eq!(lost(&stage), None);
    let mut stage = Stage::leading_a_group(OnLoss::Reelect);
    stage.on(Event::Watched(Watch::Stored(taken())));
    assert_eq!(lost(&stage), None);
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
fn a_process_that_was_stopped_collects_nothing_before_it_has_seen_what_happened_meanwhile() {
    const LEFT: &str = "left.example.com";
    let knows = |profile: &mut Profile| profile.shards.insert(LEFT);
    let deletes = |stage: &mut Stage| {
        let deleted =
            |(_, request): &(RequestId, Request)| matches!(request, Request::Delete { lease, .. } if lease == LEFT);
        let any = stage.sent.iter().any(deleted);
        stage.sent.clear();
        any
    };
    let mut stage = Stage::seeing(vec![shard(LEFT, 5, None), member("other", 6, knows)]);
    stage.now = stage.now + 100 * SECOND;
    stage.on(Event::Woken);
    assert!(!deletes(&mut stage), "the other replica may have renewed what it says all the time");
    stage.on(Event::Watched(Watch::Stored(member("other", 7, knows))));
    stage.pass(59 * SECOND);
    assert!(!deletes(&mut stage));
    stage.pass(20 * SECOND);
    assert!(deletes(&mut stage), "no replica that is there is configured for it");
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

impl Stage {
    /// Its membership is stored.
    fn publish(&mut self) {
        self.pass(SECOND);
        self.answer(|request| matches!(request, Request::Get { lease } if lease != LEASE), Answer::Found(None));
        self.pass(SECOND);
        let of_us = |(_, request): &(RequestId, Request)| match request {
            Request::Create { record, .. } => record.role == Role::Replica,
            _ => false,
        };
        let at = self.sent.iter().position(of_us).expect("the membership is written");
        let (id, Request::Create { record, .. }) = self.sent.remove(at) else { return };
        let version = Version { uid: "m".to_owned(), resource_version: "9".to_owned() };
        self.on(Event::Answered(id, Answer::Stored(Record { version, ..record })));
    }
}

impl Stage {
    /// One whose kind has a ConfigMap, that has seen these Leases and is seen by the others.
    fn by_config_map(leases: Vec<Record>) -> Self {
        let mut stage = Self::with(&[KIND], OnLoss::Reelect, LockKind::ConfigMap);
        stage.on(Event::Watched(Watch::Listed(leases)));
        stage.on(Event::Watched(Watch::Lock(0, None)));
        stage.on(Event::Judged(0, Verdict::Runnable));
        assert_eq!(stage.written(), None, "replicas with a Lease do not see it yet");
        stage.publish();
        stage
    }

    /// Writes of the membership are answered so from now on, for so long.
    fn pass_while(&mut self, time: Duration, membership: impl Fn(&Record) -> Answer) {
        let until = self.now + time;
        while self.now < until {
            self.pass(SECOND / 10);
            let of_us = |(_, request): &(RequestId, Request)| match request {
                Request::Create { record, .. } | Request::Update { record, .. } => record.role == Role::Replica,
                Request::Get { lease } => lease != LEASE,
                _ => false,
            };
            while let Some(at) = self.sent.iter().position(of_us) {
                let (id, request) = self.sent.remove(at);
                let answer = match request {
                    Request::Create { record, .. } | Request::Update { record, .. } => membership(&record),
                    _ => Answer::Found(None),
                };
                self.on(Event::Answered(id, answer));
            }
        }
    }
}

#[test]
fn a_kind_with_a_config_map_looks_at_the_leases_after_its_replica_is_seen() {
    let mut stage = Stage::by_config_map(Vec::new());
    assert!(stage.replica.profile().config_maps.contains(KIND));
    stage.store();
    assert!(!stage.starts());
    stage.answer(|request| *request == Request::List, Answer::Listed(vec![shard(LEASE, 5, Some("other_1"))]));
    assert!(!stage.starts(), "a replica with the Lease works");
    assert!(matches!(stage.replica.shards()[0].rival(), Some(Rival { config_map: false, .. })));

    let mut stage = Stage::by_config_map(Vec::new());
    stage.store();
    stage.answer(|request| *request == Request::List, Answer::Listed(Vec::new()));
    assert!(stage.starts());
}

#[test]
fn a_term_by_a_config_map_ends_when_its_membership_is_not_heard_any_more() {
    let mut stage = Stage::by_config_map(Vec::new());
    stage.store();
    stage.answer(|request| *request == Request::List, Answer::Listed(Vec::new()));
    stage.pass_while(30 * SECOND, |record| Answer::Stored(record.clone()));
    assert_eq!(stage.state(), State::Running, "renewals of both are stored");
    stage.done.clear();
    let heard_at = stage.replica.membership.heard_at().unwrap();
    let refuse = |_: &Record| Answer::Refused("no".to_owned());
    while stage.state() == State::Running {
        stage.pass_while(SECOND / 10, refuse);
    }
    assert_eq!(stage.state(), State::Draining);
    assert!((10 * SECOND..=SECOND * 102 / 10).contains(&stage.now.since(heard_at)), "{:?}", stage.now.since(heard_at));
    stage.pass_while(5 * SECOND, refuse);
    assert!(stage.done.contains(&Effect::Shut(0, 1)), "{:?}", stage.done);
    let too_long = |it: &Effect| matches!(it, Effect::Extend(_, _, until) if *until > heard_at + SECOND * 147 / 10);
    assert!(!stage.done.iter().any(too_long), "a replica with a Lease waits for no longer than a duration");
}

#[test]
fn one_with_a_config_map_that_stops_says_so_before_its_membership_goes() {
    let mut stage = Stage::by_config_map(vec![shard(LEASE, 5, Some("other_1"))]);
    stage.on(Event::Signalled);
    let deletes = |stage: &Stage| stage.sent.iter().any(|(_, request)| matches!(request, Request::Delete { .. }));
    stage.pass(SECOND / 10);
    assert!(!deletes(&stage));
    stage.pass_while(SECOND, |record| {
        assert!(record.profile.as_ref().is_some_and(|profile| profile.config_maps.is_empty()));
        Answer::Stored(record.clone())
    });
    assert!(deletes(&stage));
}

#[test]
fn the_lease_of_the_same_name_is_no_lock_of_a_kind_with_a_config_map_and_keeps_it_from_leading() {
    let mut stage = Stage::by_config_map(vec![shard(LEASE, 5, Some("other_1"))]);
    assert_eq!(stage.written(), None);
    assert!(matches!(stage.replica.shards()[0].rival(), Some(Rival { config_map: false, .. })));
    stage.on(Event::Watched(Watch::Stored(shard(LEASE, 6, None))));
    let created = matches!(stage.written(), Some((_, _, Purpose::Create)));
    assert!(created, "the Lease is free and the ConfigMap is not there");
}

#[test]
fn a_kind_with_a_lease_waits_for_replicas_that_have_a_config_map_and_works_on_beside_later_ones() {
    let by_config_map = |version| member("old", version, |it| it.config_maps = [KIND].into_iter().collect());
    let mut stage = Stage::seeing(vec![by_config_map(5)]);
    assert_eq!(stage.written(), None);
    assert!(matches!(stage.replica.shards()[0].rival(), Some(Rival { config_map: true, .. })));
    stage.on(Event::Watched(Watch::Stored(member("old", 6, |_| {}))));
    assert!(stage.written().is_some(), "it leads nothing any more");

    let mut first = Stage::leading();
    let later = first.version + 1;
    first.on(Event::Watched(Watch::Stored(by_config_map(later))));
    assert_eq!(first.state(), State::Running, "the other one sees the Lease before it works");
}

#[test]
fn a_membership_that_a_hand_deletes_may_be_of_one_that_leads_by_a_config_map_still() {
    let by_config_map = |version| member("old", version, |it| it.config_maps = [KIND].into_iter().collect());
    for listed in [false, true] {
        let mut stage = Stage::seeing(vec![by_config_map(5)]);
        stage.on(Event::Watched(match listed {
            true => Watch::Listed(Vec::new()),
            false => Watch::Deleted(by_config_map(5)),
        }));
        stage.pass(14 * SECOND);
        assert_eq!(stage.written(), None);
        stage.pass(2 * SECOND);
        assert!(stage.written().is_some());
    }
}

#[test]
fn one_that_does_not_see_lists_the_replicas_with_a_config_map_as_well() {
    let mut stage = Stage::seeing(Vec::new());
    stage.on(Event::Watched(Watch::Failed("down".to_owned())));
    stage.store();
    let by_config_map = member("old", 5, |it| it.config_maps = [KIND].into_iter().collect());
    stage.answer(|request| *request == Request::List, Answer::Listed(vec![by_config_map]));
    assert!(!stage.starts());
    assert!(matches!(stage.replica.shards()[0].rival(), Some(Rival { config_map: true, .. })));
}

#[test]
fn a_lock_whose_watch_is_down_is_read() {
    let mut stage = Stage::with(&[KIND], OnLoss::Reelect, LockKind::ConfigMap);
    stage.on(Event::Watched(Watch::Listed(Vec::new())));
    stage.on(Event::Judged(0, Verdict::Runnable));
    stage.on(Event::Watched(Watch::LockFailed(0)));
    stage.publish();
    let reads = |request: &Request| matches!(request, Request::Get { lease } if lease == LEASE);
    stage.answer(reads, Answer::Found(Some(shard(LEASE, 5, Some("other_1")))));
    assert_eq!(stage.replica.shards()[0].holder(), Some("other_1"));
    stage.pass(3 * SECOND);
    stage.answer(reads, Answer::Refused("it carries data".to_owned()));
    assert_eq!(stage.replica.shards()[0].trouble(), Some("it carries data"));
}

#[test]
fn a_stranger_that_holds_a_kinds_lease_is_named_until_it_does_not() {
    let mut stage = Stage::seeing(vec![shard(LEASE, 5, Some("attacker"))]);
    assert!(!stage.notes().iter().any(|note| matches!(note, Notice::Stranger(..))), "the Pods are not known");
    let pods = |name: &str| Some(BTreeMap::from([(name.to_owned(), format!("{name}-uid"))]));
    stage.on(Event::Pods(pods("me")));
    assert!(stage.notes().contains(&&Notice::Stranger(0, Some("attacker".to_owned()))));
    assert_eq!(stage.replica.shards()[0].stranger(), Some("attacker"));
    stage.on(Event::Watched(Watch::Stored(shard(LEASE, 6, Some("other_1")))));
    assert_eq!(stage.replica.shards()[0].stranger(), Some("other_1"));
    stage.on(Event::Pods(pods("other")));
    assert!(stage.notes().contains(&&Notice::Stranger(0, None)));
}
