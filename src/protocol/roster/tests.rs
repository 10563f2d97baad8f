use super::*;
use crate::protocol::history::{Reason, Release};

const SECOND: Duration = Duration::from_secs(1);
const RULES: Rules = Rules {
    rebalance: Rebalance::Automatic,
    settle: Duration::from_secs(5),
    grace: Duration::from_secs(2),
    lease_duration: Duration::from_secs(15),
};
const LEASES: [&str; 4] = ["a", "b", "c", "d"];

fn at(seconds: u64) -> Moment {
    Moment::after_origin(Duration::from_secs(1000 + seconds))
}

fn version(number: u64) -> Version {
    Version { uid: "u".to_owned(), resource_version: number.to_string() }
}

fn profile(name: &str) -> Profile {
    Profile { pod: name.to_owned(), capacity: 1, shards: LEASES.iter().collect(), ..Profile::default() }
}

fn member(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        version: version(1),
        identity: name.to_owned(),
        duration: Some(15 * SECOND),
        created: 0,
        profile: profile(name),
    }
}

fn held_by(name: &str) -> Holding {
    Holding {
        version: version(1),
        holder: Some(name.to_owned()),
        duration: Some(15 * SECOND),
        holder_pod: None,
        transitions: 3,
        successor: None,
        wanted: None,
        weight: None,
    }
}

fn dead(name: &str) -> Deaths {
    Deaths { ended: [(name.to_owned(), None)].into(), ..Deaths::default() }
}

fn specs(standby: StandbyMode) -> Vec<ShardSpec> {
    LEASES
        .map(|lease| ShardSpec {
            lease: lease.to_owned(),
            lock: Default::default(),
            kinds: vec![lease.to_uppercase()],
            weight: 1,
            standby,
        })
        .into()
}

/// What "me" sees at second 0: these others, and each Lease with its holder.
fn roster(others: &[&str], holders: [&str; 4]) -> Roster {
    ruled(RULES, others, holders)
}

fn ruled(rules: Rules, others: &[&str], holders: [&str; 4]) -> Roster {
    let mut roster = Roster::new("me".to_owned(), profile("me"), specs(StandbyMode::Successor), rules, at(0));
    let members: Vec<_> = others.iter().map(|name| member(name)).collect();
    let free = |name: &str| Holding { holder: None, ..held_by(name) };
    let holding = |name: &str| if name.is_empty() { free(name) } else { held_by(name) };
    let holdings = LEASES.iter().zip(holders).map(|(lease, holder)| ((*lease).to_owned(), holding(holder)));
    let old = members.iter().map(|member| Member { version: version(0), ..member.clone() });
    roster.listed(at(0), old.collect(), holdings.collect());
    // They renew, and so are known to be there still.
    for member in members {
        roster.member(at(0), member);
    }
    roster.advise(at(0));
    roster
}

/// Renews everything at `now`, so that nothing is taken for silent.
fn renew(roster: &mut Roster, now: Moment, number: u64) {
    for member in roster.members.values().map(|it| it.what.clone()).collect::<Vec<_>>() {
        roster.member(now, Member { version: version(number), ..member });
    }
    for (lease, it) in roster.holdings.clone() {
        roster.holding(now, &lease, Some(Holding { version: version(number), ..it.what }));
    }
}

fn change(roster: &mut Roster, now: Moment, name: &str, number: u64, change: impl FnOnce(&mut Profile)) -> bool {
    let mut member = roster.members[name].what.clone();
    member.version = version(number);
    change(&mut member.profile);
    roster.member(now, member)
}

/// Shards that "me" is to give away, and to whom.
fn given_away(roster: &mut Roster, now: Moment) -> Vec<(String, String)> {
    let shards = roster.advise(now).shards;
    shards.into_iter().filter_map(|(lease, advice)| Some((lease, advice.hand_over?.to))).collect()
}

#[test]
fn one_that_starts_alone_takes_its_shards_slowly_and_then_whatever_is_free_at_once() {
    let mut alone = roster(&[], ["", "", "", ""]);
    let shards = alone.advise(at(0)).shards;
    let patience: Vec<_> = LEASES.iter().map(|lease| shards[*lease].patience.as_millis()).collect();
    assert_eq!(patience, [0, 500, 1000, 1500], "the next one to start finds some left");
    let later = alone.advise(at(2)).shards;
    assert!(later.values().all(|advice| advice.patience.is_zero()));
}

#[test]
fn a_weight_beyond_all_bounds_on_a_lease_costs_balance_and_nothing_else() {
    let mut alone = roster(&[], ["", "", "", ""]);
    for lease in LEASES {
        let heavy = Holding { version: version(2), holder: None, weight: Some(u32::MAX), ..held_by("") };
        alone.holding(at(0), lease, Some(heavy));
    }
    let shards = alone.advise(at(0)).shards;
    assert!(shards.values().all(|advice| advice.target.as_deref() == Some("me") && advice.patience <= RULES.grace));
}

#[test]
fn the_target_goes_at_once_and_the_others_in_turn_within_the_grace() {
    let mut roster = roster(&["x", "y", "z"], ["x", "y", "z", ""]);
    assert_eq!(
        roster.advise(at(3)).shards["d"],
        Advice { target: Some("me".to_owned()), cache: Cache::Begun, ..Advice::default() }
    );
    let mut crowded = self::roster(&["x", "y", "z"], ["me", "y", "z", ""]);
    let advice = crowded.advise(at(3)).shards["d"].clone();
    assert_eq!(advice.target.as_deref(), Some("x"));
    assert!(advice.patience > SECOND && advice.patience <= 2 * SECOND, "{:?}", advice.patience);
}

#[test]
fn one_that_stops_names_a_successor_for_each_shard_and_says_when_that_one_is_prepared() {
    let mut roster = roster(&["x", "y"], ["me", "me", "x", "y"]);
    let draining = Profile { activity: Activity::Draining, ..roster.me().clone() };
    roster.introduce(draining);
    let shards = roster.advise(at(1)).shards;
    let successors: BTreeSet<_> = ["a", "b"].map(|lease| shards[lease].hand_over.clone().unwrap().to).into();
    assert_eq!(successors, BTreeSet::from(["x".to_owned(), "y".to_owned()]), "both at once, and evenly");
    let HandOver { to: successor, prepared, .. } = shards["a"].hand_over.clone().unwrap();
    assert!(!prepared);
    change(&mut roster, at(1), &successor, 2, |it| {
        it.prepared.insert("a".to_owned(), "u/2".to_owned());
    });
    assert!(!roster.advise(at(1)).shards["a"].hand_over.clone().unwrap().prepared, "that was for an earlier term");
    change(&mut roster, at(1), &successor, 3, |it| {
        it.prepared.insert("a".to_owned(), "u/3".to_owned());
    });
    assert!(roster.advise(at(1)).shards["a"].hand_over.clone().unwrap().prepared);
}

/// Three of them stop at once, and two have named the same one before they knew of each other.
#[test]
fn whom_a_shard_goes_to_is_mended_until_that_one_is_prepared() {
    let going = |prepared: bool| {
        let mut roster = roster(&["w", "x", "y"], ["me", "x", "w", "y"]);
        roster.advise(at(1));
        roster.introduce(Profile { activity: Activity::Draining, ..profile("me") });
        let first = roster.advise(at(1)).shards["a"].hand_over.clone().unwrap().to;
        change(&mut roster, at(1), "x", 2, |x| x.activity = Activity::Draining);
        // An earlier word of ours comes late: it is not what we say now.
        let stale = Holding { version: version(2), successor: Some("x".to_owned()), ..held_by("me") };
        roster.holding(at(1), "a", Some(stale.clone()));
        if prepared {
            change(&mut roster, at(1), &first, 3, |it| it.prepared = [("a".to_owned(), stale.token())].into());
        }
        let other = Holding { version: version(2), successor: Some(first.clone()), ..held_by("x") };
        roster.holding(at(1), "b", Some(other));
        let plan = roster.advise(at(1));
        let mine = plan.shards["a"].hand_over.clone().unwrap().to;
        let others = plan.shards["b"].target.clone().unwrap();
        (mine == first, others == first)
    };
    let (mine, others) = going(false);
    assert!(mine != others, "one of the two is sent elsewhere, and both know which");
    assert_eq!(going(true), (true, false), "who is prepared gets it");
}

#[test]
fn none_waits_for_a_successor_that_does_not_come() {
    let mut roster = roster(&["x", "y"], ["y", "y", "x", "me"]);
    assert_eq!(roster.courtesy(at(0), "a"), RULES.grace, "none is named");
    roster.holding(at(0), "a", Some(release(2, Some("x"))));
    assert_eq!(roster.courtesy(at(0), "a"), RULES.grace);
    change(&mut roster, at(0), "x", 2, |it| it.unable.insert("a"));
    assert_eq!((roster.courtesy(at(0), "a"), roster.courtesy(at(0), "b")), (Duration::ZERO, RULES.grace));
    change(&mut roster, at(0), "x", 3, |it| it.unable = LeaseSet::default());
    assert_eq!(
        (roster.courtesy(at(0), "a"), roster.courtesy(at(15), "a")),
        (RULES.grace, Duration::ZERO),
        "it is silent"
    );
    change(&mut roster, at(0), "x", 4, |it| it.activity = Activity::Draining);
    assert_eq!(roster.courtesy(at(0), "a"), Duration::ZERO);
    roster.member_gone(at(0), "x");
    assert_eq!(roster.courtesy(at(0), "a"), Duration::ZERO);
    roster.blind();
    assert_eq!(roster.courtesy(at(0), "a"), RULES.grace, "what became of it is not known");
}

#[test]
fn a_successor_that_goes_away_is_replaced_by_the_next_one() {
    let mut roster = roster(&["x", "y"], ["me", "x", "y", "y"]);
    roster.introduce(Profile { activity: Activity::Draining, ..roster.me().clone() });
    assert_eq!(given_away(&mut roster, at(1)), [("a".to_owned(), "x".to_owned())]);
    roster.holding(at(1), "a", Some(Holding { version: version(2), successor: Some("x".to_owned()), ..held_by("me") }));
    change(&mut roster, at(1), "x", 2, |it| it.activity = Activity::Draining);
    assert_eq!(given_away(&mut roster, at(1)), [("a".to_owned(), "y".to_owned())]);
    roster.member_gone(at(0), "y");
    assert_eq!(given_away(&mut roster, at(1)), [], "no other replica is left: it is released without a name");
}

#[test]
fn a_move_waits_until_the_replicas_have_settled_and_they_go_one_at_a_time() {
    let mut roster = roster(&["x"], ["me", "me", "me", "me"]);
    assert_eq!(given_away(&mut roster, at(4)), []);
    let first = given_away(&mut roster, at(5));
    assert_eq!(first.len(), 1, "{first:?}");
    let named =
        |to: &str, number| Holding { version: version(number), successor: Some(to.to_owned()), ..held_by("me") };
    roster.holding(at(5), &first[0].0, Some(named("x", 2)));
    assert_eq!(given_away(&mut roster, at(6)), first, "it goes on, and no other begins");
    roster.holding(at(6), &first[0].0, Some(Holding { version: version(3), transitions: 4, ..held_by("x") }));
    let second = given_away(&mut roster, at(6));
    assert_eq!(second.len(), 1);
    assert_ne!(second, first);
    roster.holding(at(7), &second[0].0, Some(Holding { version: version(4), transitions: 4, ..held_by("x") }));
    assert_eq!(given_away(&mut roster, at(7)), [], "two and two");
}

/// The soak found two shards on their way at once, for as long as a request takes.
#[test]
fn no_other_move_begins_while_a_lease_still_names_the_successor_that_was_taken_back() {
    let mut roster = roster(&["x", "y"], ["me", "me", "me", "me"]);
    let first = given_away(&mut roster, at(5));
    let (lease, to) = first[0].clone();
    let named = Holding { version: version(2), successor: Some(to.clone()), ..held_by("me") };
    roster.holding(at(5), &lease, Some(named));
    roster.miss(at(6), &lease, &to);
    assert_eq!(given_away(&mut roster, at(6)), []);
    roster.holding(at(6), &lease, Some(Holding { version: version(3), ..held_by("me") }));
    let second = given_away(&mut roster, at(6));
    assert!(second.len() == 1 && second != first, "{second:?}");
}

#[test]
fn a_replica_that_comes_or_goes_puts_moves_off() {
    let mut roster = roster(&["x"], ["me", "me", "me", "me"]);
    roster.member(at(4), member("y"));
    roster.advise(at(4));
    assert_eq!(given_away(&mut roster, at(8)), []);
    assert_eq!(given_away(&mut roster, at(9)).len(), 1);
}

#[test]
fn moves_pause_while_two_generations_live_unless_nothing_happens_for_long() {
    let mut roster = roster(&["x"], ["me", "me", "me", "me"]);
    change(&mut roster, at(0), "x", 2, |it| {
        it.generation = "new".to_owned();
        it.revision = Some(2);
    });
    roster.advise(at(0));
    for second in [5, 14, 28, 42, 55] {
        renew(&mut roster, at(second), second);
        assert_eq!(given_away(&mut roster, at(second)), [], "second {second}");
    }
    renew(&mut roster, at(60), 60);
    assert_eq!(given_away(&mut roster, at(60)).len(), 1, "that is no rollout any more");
}

#[test]
fn after_a_rolling_restart_only_is_a_mode_and_never_is_one() {
    for (rebalance, after_rollout) in [(Rebalance::OnRestart, 1), (Rebalance::Never, 0)] {
        let mut roster = ruled(Rules { rebalance, ..RULES }, &["x"], ["me", "me", "me", "me"]);
        assert_eq!(given_away(&mut roster, at(6)), [], "{rebalance:?}: x has only joined");
        let old = Member { profile: Profile { generation: "old".to_owned(), ..profile("y") }, ..member("y") };
        roster.member(at(6), old);
        roster.advise(at(6));
        roster.member_gone(at(0), "y");
        roster.advise(at(7));
        assert_eq!(given_away(&mut roster, at(12)).len(), after_rollout, "{rebalance:?}: the rollout has ended");
    }
}

#[test]
fn a_replica_that_falls_silent_or_lets_a_shard_expire_is_no_target() {
    let mut roster = roster(&["x", "y"], ["x", "y", "y", "me"]);
    for second in [5, 10] {
        change(&mut roster, at(second), "x", second, |_| {});
        change(&mut roster, at(second), "y", second, |_| {});
    }
    for lease in ["b", "c", "d"] {
        let holding = roster.holdings[lease].what.clone();
        roster.holding(at(10), lease, Some(Holding { version: version(10), ..holding }));
    }
    let shards = roster.advise(at(15)).shards;
    assert_eq!(
        shards["a"].target.as_deref(),
        Some("me"),
        "x renews itself at 10 and has lost a: it is as good as gone"
    );
    change(&mut roster, at(16), "x", 16, |_| {});
    assert_eq!(roster.advise(at(16)).shards["a"].target.as_deref(), Some("x"), "it is there after all");
    assert!(roster.advise(at(26)).shards["b"].target.as_deref() != Some("y"), "silent since 10");
}

#[test]
fn the_proven_dead_are_not_waited_for() {
    let mut roster = roster(&["x"], ["x", "me", "me", "me"]);
    assert!(roster.mark_dead(&dead("x")));
    assert!(!roster.mark_dead(&dead("x")));
    assert_eq!(roster.advise(at(3)).shards["a"].target.as_deref(), Some("me"));
}

#[test]
fn a_new_process_of_a_pod_takes_back_what_the_old_one_held() {
    let in_pod = |uid: &str| Profile { pod_uid: Some(uid.to_owned()), ..profile("p") };
    let of_pod = |uid: &str, name: &str| Holding { holder_pod: Some(uid.to_owned()), ..held_by(name) };
    let mut again = Roster::new("me".to_owned(), in_pod("uid"), specs(StandbyMode::Successor), RULES, at(0));
    let before = Member { profile: in_pod("uid"), ..member("before") };
    let all = LEASES.map(|lease| (lease.to_owned(), of_pod("uid", "before"))).into();
    again.listed(at(0), vec![before.clone()], all);
    assert_eq!(again.predecessors().map(|it| it.identity.as_str()).collect::<Vec<_>>(), ["before"]);
    let shards = again.advise(at(0)).shards;
    assert!(shards.values().all(|it| it.target.as_deref() == Some("me") && it.patience.is_zero()), "{shards:?}");

    let mut other = roster(&[], ["me", "me", "me", "me"]);
    other.member(at(1), before);
    other.member(at(2), Member { profile: in_pod("uid"), created: 9, ..member("after") });
    other.holding(at(2), "a", Some(Holding { version: version(2), ..of_pod("uid", "before") }));
    assert_eq!(other.advise(at(2)).shards["a"].target.as_deref(), Some("after"), "others leave it to that one");
}

#[test]
fn a_shard_asked_for_by_hand_goes_there_at_once_and_stays() {
    let mut roster = roster(&["x"], ["me", "me", "x", "x"]);
    let wanted =
        |holder: &str, number| Holding { version: version(number), wanted: Some("x".to_owned()), ..held_by(holder) };
    roster.holding(at(1), "a", Some(wanted("me", 2)));
    assert_eq!(given_away(&mut roster, at(1)), [("a".to_owned(), "x".to_owned())]);
    roster.holding(at(2), "a", Some(wanted("x", 3)));
    renew(&mut roster, at(14), 14);
    let shards = roster.advise(at(14)).shards;
    assert_eq!(shards["a"].target.as_deref(), Some("x"));
    let back = ["c", "d"].into_iter().filter(|lease| shards[*lease].target.as_deref() == Some("me"));
    assert_eq!(back.count(), 1, "another one comes in exchange");
    roster.member_gone(at(0), "x");
    assert_eq!(
        roster.advise(at(30)).shards["a"].target.as_deref(),
        Some("me"),
        "and no replica waits for one that is gone"
    );
}

#[test]
fn who_keeps_a_cache() {
    for (standby, keeps) in [(StandbyMode::None, false), (StandbyMode::Successor, false), (StandbyMode::All, true)] {
        let mut roster = Roster::new("me".to_owned(), profile("me"), specs(standby), RULES, at(0));
        let holders = [("a", "x"), ("b", "x"), ("c", "me"), ("d", "me")];
        let holdings = holders.map(|(lease, holder)| (lease.to_owned(), held_by(holder))).into();
        roster.listed(at(0), vec![member("x"), member("y")], holdings);
        for (seconds, kept) in [(0, Cache::Begun), (6, Cache::Kept)] {
            let shards = roster.advise(at(seconds)).shards;
            for lease in ["a", "b"] {
                let expected = if keeps { kept } else { Cache::None };
                assert_eq!(shards[lease].cache, expected, "{standby:?}, {seconds} s: y has nothing and is next");
            }
            assert_eq!(shards["c"].cache, Cache::Begun, "its term begins with one that it has, and needs no other");
        }
        roster.holding(
            at(7),
            "a",
            Some(Holding { version: version(2), successor: Some("me".to_owned()), ..held_by("x") }),
        );
        let named = roster.advise(at(7)).shards["a"].clone();
        assert_eq!(named.cache, Cache::Kept, "{standby:?}: a planned handover waits for it in any case");
        assert_eq!(named.named.as_deref(), Some("u/3"));
    }
}

#[test]
fn a_kind_that_fails_somewhere_moves_no_other_one() {
    let mut roster = roster(&["x"], ["me", "x", "me", "x"]);
    change(&mut roster, at(0), "x", 2, |it| {
        it.unable.insert("b");
        it.failing.insert("b");
    });
    roster.holding(at(0), "b", Some(release(2, None)));
    roster.holding(at(0), "b", Some(next(3, "me", 4)));
    roster.advise(at(0));
    assert_eq!(given_away(&mut roster, at(9)), [], "three and one, and one of the three fails over there");
    change(&mut roster, at(10), "x", 3, |it| {
        it.unable = LeaseSet::default();
        it.failing = LeaseSet::default();
    });
    renew(&mut roster, at(10), 11);
    roster.advise(at(10));
    assert_eq!(given_away(&mut roster, at(14)), []);
    let back = given_away(&mut roster, at(16));
    assert_eq!(back, [("b".to_owned(), "x".to_owned())], "it fails no more, and is the one to go back");
}

#[test]
fn a_shard_is_never_given_to_one_that_does_not_know_it() {
    let mut roster = roster(&["x", "y"], ["me", "x", "x", "y"]);
    change(&mut roster, at(0), "y", 2, |it| {
        it.shards = LEASES[1..].iter().collect();
    });
    roster.introduce(Profile { activity: Activity::Draining, ..roster.me().clone() });
    assert_eq!(given_away(&mut roster, at(1)), [("a".to_owned(), "x".to_owned())]);
}

#[test]
fn a_strangers_lease_is_left_to_it() {
    let mut roster = roster(&["x"], ["a client-go elector", "me", "x", "me"]);
    let advice = roster.advise(at(6)).shards["a"].clone();
    assert_eq!((advice.target, advice.patience), (None, 2 * SECOND));
}

#[test]
fn the_newest_generation_is_the_one_of_the_latest_revision_also_in_a_rollback() {
    let of = |generation: &str, revision, name: &str| Member {
        profile: Profile { generation: generation.to_owned(), revision, ..profile(name) },
        ..member(name)
    };
    let newest = |members: Vec<Member>| {
        let me = Profile { activity: Activity::Draining, ..profile("me") };
        let mut roster = Roster::new("me".to_owned(), me, specs(StandbyMode::None), RULES, at(0));
        let holdings = LEASES.map(|lease| (lease.to_owned(), held_by("me"))).into();
        roster.listed(at(0), members, holdings);
        let targets: BTreeSet<_> = given_away(&mut roster, at(1)).into_iter().map(|(_, to)| to).collect();
        targets.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(newest(vec![of("a", Some(1), "old"), of("b", Some(2), "new")]), "new");
    let rolled_back = vec![of("a", Some(1), "kept"), of("a", Some(3), "made anew"), of("b", Some(2), "bad")];
    assert_eq!(newest(rolled_back), "kept made anew");
    let by_age = |created, it| Member { created, ..it };
    let unknown =
        vec![by_age(7, of("a", None, "old")), by_age(20, of("b", None, "new")), by_age(30, of("a", None, "restarted"))];
    assert_eq!(newest(unknown), "new");
}

#[test]
fn unneeded_leases_are_collected_by_one_replica_and_after_a_safe_time() {
    let mut roster = roster(&["x"], ["me", "me", "x", "x"]);
    let names =
        |garbage: Vec<(String, Version, Garbage)>| garbage.into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
    roster.holding(at(0), "of a removed kind", Some(Holding { holder: None, ..held_by("") }));
    roster.holding(at(0), "of a strangers kind", Some(held_by("a client-go elector")));
    for second in (5..60).step_by(5) {
        roster.holding(
            at(second),
            "of a strangers kind",
            Some(Holding { version: version(second), ..held_by("a client-go elector") }),
        );
        roster.advise(at(second));
        assert_eq!(names(roster.garbage(at(second))), Vec::<String>::new(), "second {second}");
    }
    assert_eq!(names(roster.garbage(at(60))), ["x", "of a removed kind"], "x is silent since 0");
    roster.member(at(60), Member { version: version(60), ..member("a first one") });
    assert_eq!(names(roster.garbage(at(60))), Vec::<String>::new(), "another one sees to it");

    let mut roster = self::roster(&["x"], ["me", "me", "x", "x"]);
    roster.mark_dead(&dead("x"));
    assert_eq!(names(roster.garbage(at(1))), ["x"], "the proven dead renew nothing");
}

#[test]
fn a_kind_that_another_replica_is_configured_for_is_not_collected() {
    let mut roster = roster(&["x"], ["me", "me", "x", "x"]);
    roster.holding(at(0), "new", Some(Holding { holder: None, ..held_by("") }));
    change(&mut roster, at(55), "x", 2, |it| {
        it.shards.insert("new");
    });
    assert!(roster.garbage(at(61)).iter().all(|(name, ..)| name != "new"));
    assert!(roster.garbage(at(85)).iter().all(|(name, ..)| name != "new"), "x is late, and may come back");
    assert!(roster.garbage(at(115)).iter().any(|(name, ..)| name == "new"), "x was silent for as long as the Lease");
    change(&mut roster, at(116), "x", 3, |_| {});
    roster.mark_dead(&dead("x"));
    assert!(roster.garbage(at(117)).iter().any(|(name, ..)| name == "new"), "x is proven dead");
}

#[test]
fn without_the_watch_nothing_is_moved_and_no_successor_named() {
    let mut roster = roster(&["x"], ["me", "me", "me", "me"]);
    roster.blind();
    let shards = roster.advise(at(9)).shards;
    assert!(shards.values().all(|it| *it == Advice { patience: 2 * SECOND, ..Advice::default() }), "{shards:?}");
    assert_eq!(roster.garbage(at(99)), []);
}

#[test]
fn who_has_let_a_shard_expire_is_back_when_it_renews_and_not_when_the_shard_is_taken() {
    let mut roster = roster(&["x"], ["me", "me", "x", "x"]);
    change(&mut roster, at(9), "x", 2, |_| {});
    let targets = |roster: &mut Roster, now| roster.advise(now).shards["d"].target.clone();
    assert_eq!(targets(&mut roster, at(16)).as_deref(), Some("me"), "its shards have expired");
    for lease in ["c", "d"] {
        let taken = Holding { version: version(9), holder: Some("me".to_owned()), ..held_by("x") };
        roster.holding(at(16), lease, Some(taken));
    }
    roster.advise(at(16));
    assert!(!roster.present(at(16)).iter().any(|one| one.identity == "x"));
    assert!(change(&mut roster, at(17), "x", 3, |_| {}), "that it is there again is news");
    assert!(roster.present(at(17)).iter().any(|one| one.identity == "x"));
}

#[test]
fn who_has_lost_a_shard_to_one_that_had_a_proof_does_not_count_until_it_renews() {
    // Another knows that "x" is dead, which we have not heard: with "x" counted, we would give a shard away.
    let mut roster = roster(&["x", "y"], ["me", "me", "x", "x"]);
    renew(&mut roster, at(10), 2);
    for lease in ["c", "d"] {
        roster.holding(at(11), lease, Some(next(3, "y", 4)));
    }
    let peers =
        |roster: &mut Roster, now| roster.advise(now).peers.into_iter().map(|peer| peer.identity).collect::<Vec<_>>();
    assert_eq!(peers(&mut roster, at(11)), ["me", "y"]);
    assert_eq!(given_away(&mut roster, at(17)), []);

    change(&mut roster, at(18), "x", 4, |_| ());
    assert_eq!(peers(&mut roster, at(18)), ["me", "x", "y"], "it was alive");
}

#[test]
fn nothing_is_moved_while_a_replica_is_known_from_a_list_only() {
    let mut roster = roster(&["x"], ["me", "me", "me", "me"]);
    let (ghost, holdings) = (member("ghost"), roster.holdings.clone());
    let holdings = holdings.into_iter().map(|(lease, it)| (lease, it.what));
    roster.listed(at(1), vec![member("x"), ghost.clone()], holdings.collect());
    roster.advise(at(1));
    assert_eq!(given_away(&mut roster, at(9)), [], "it may have been gone for long");
    assert!(roster.member(at(9), Member { version: version(2), ..ghost }), "that it renews is news");
    assert_eq!(given_away(&mut roster, at(9)).len(), 1);
}

#[test]
fn nothing_is_moved_in_the_moment_in_which_another_names_its_successors() {
    let mut roster = roster(&["x", "y"], ["me", "me", "x", "me"]);
    roster.advise(at(4));
    let named = Holding { version: version(2), successor: Some("y".to_owned()), ..held_by("x") };
    roster.holding(at(9), "c", Some(named));
    assert_eq!(given_away(&mut roster, at(9)), [], "x may be about to say that it stops");
    assert_eq!(given_away(&mut roster, at(10)).len(), 1);
}

#[test]
fn replicas_that_are_configured_differently_count_a_shard_alike() {
    let view = || roster(&["x"], ["me", "me", "me", "x"]);
    assert_eq!(given_away(&mut view(), at(9)).len(), 1, "three and one");
    let (mut roster, heavy) = (view(), Holding { version: version(2), weight: Some(3), ..held_by("x") });
    roster.holding(at(9), "d", Some(heavy));
    assert_eq!(given_away(&mut roster, at(9)), [], "three and three, as x says");
}

#[test]
fn a_renewal_is_no_news_and_a_change_is() {
    let mut roster = roster(&["x"], ["me", "me", "x", "x"]);
    assert!(!change(&mut roster, at(1), "x", 2, |_| {}));
    assert!(change(&mut roster, at(1), "x", 3, |it| it.activity = Activity::Draining));
    assert!(!roster.holding(at(1), "a", Some(Holding { version: version(2), ..held_by("me") })));
    assert!(roster.holding(
        at(1),
        "a",
        Some(Holding { version: version(3), successor: Some("x".to_owned()), ..held_by("me") })
    ));
    assert!(change(&mut roster, at(30), "x", 4, |_| {}), "it was silent and is there again");
}

#[test]
fn a_shard_that_shall_be_elsewhere_goes_to_the_least_loaded_replica() {
    let members = [member("x"), member("y"), member("z")];
    let holdings = [("a", "x"), ("b", "y"), ("c", "z"), ("d", "z")].map(|(it, by)| (it.to_owned(), held_by(by)));
    assert_eq!(elsewhere("a", "x", &members, &holdings).as_deref(), Some("y"));
    assert_eq!(elsewhere("a", "x", &members[..1], &holdings), None);
}

#[test]
fn what_has_expired_here_and_is_ours_again_is_not_given_away() {
    let mut roster = roster(&["x"], ["me", "me", "x", "me"]);
    roster.advise(at(0));
    let silent = roster.holdings["a"].clone();
    renew(&mut roster, at(9), 5);
    renew(&mut roster, at(18), 6);
    roster.holdings.insert("a".to_owned(), silent);
    let advice = roster.advise(at(20)).shards["a"].clone();
    assert!(advice.held && advice.hand_over.is_none(), "{advice:?}");
    assert_eq!(advice.target.as_deref(), Some("x"), "it was placed as a free one");
}

#[test]
fn two_owners_have_a_newest_generation_each() {
    let mut roster = roster(&["x", "y"], ["me", "me", "me", "me"]);
    let of = |owner: &str, generation: &str, revision| {
        let (owner, generation) = (Some(owner.to_owned()), generation.to_owned());
        move |it: &mut Profile| (it.owner, it.generation, it.revision) = (owner, generation, Some(revision))
    };
    of("Deployment/small", "s1", 1)(&mut roster.me);
    change(&mut roster, at(0), "x", 2, of("Deployment/small", "s1", 1));
    change(&mut roster, at(0), "y", 2, of("Deployment/large", "l9", 9));
    let newest = |roster: &mut Roster| {
        let peers = roster.advise(at(9)).peers;
        peers.into_iter().filter(|peer| peer.newest).map(|peer| peer.identity).collect::<Vec<_>>()
    };
    assert_eq!(newest(&mut roster), ["me", "x", "y"], "revisions of two Deployments are not compared");
    assert_eq!(given_away(&mut roster, at(9)).len(), 1, "two owners are no rollout");
    change(&mut roster, at(9), "x", 3, of("Deployment/large", "l8", 8));
    assert_eq!(newest(&mut roster), ["me", "y"]);
}

#[test]
fn a_replica_of_a_rollout_is_one_before_it_knows_its_owner() {
    let moves = |owner: Option<&str>, generation: &str| {
        let mut roster = roster(&["x"], ["me", "me", "me", "me"]);
        (roster.me.owner, roster.me.generation) = (Some("Deployment/one".to_owned()), "g1".to_owned());
        change(&mut roster, at(0), "x", 2, |it| {
            (it.owner, it.generation) = (owner.map(str::to_owned), generation.to_owned());
        });
        given_away(&mut roster, at(9)).len()
    };
    assert_eq!(moves(Some("Deployment/one"), "g1"), 1);
    assert_eq!(moves(Some("Deployment/one"), "g2"), 0);
    assert_eq!((moves(None, "g1"), moves(None, "g2")), (1, 0));
}

#[test]
fn what_a_rollout_left_is_evened_out_at_once_when_its_last_replica_goes_and_not_when_one_changes() {
    let after = |goes: bool| {
        let mut roster = roster(&["x", "y"], ["me", "me", "me", "me"]);
        change(&mut roster, at(0), "x", 2, |it| it.generation = "old".to_owned());
        roster.advise(at(0));
        change(&mut roster, at(10), "x", 3, |it| it.activity = Activity::Draining);
        roster.advise(at(10));
        roster.member_gone(at(10), "x");
        roster.advise(at(10));
        if !goes {
            change(&mut roster, at(11), "y", 3, |it| it.unable.insert("d"));
            roster.advise(at(11));
        }
        renew(&mut roster, at(12), 12);
        (given_away(&mut roster, at(12)).len(), roster.waits(at(12)))
    };
    assert_eq!((after(true), after(false)), ((1, vec![]), (0, vec![Wait::Settling(at(16))])));
}

/// Gives "a" to x, lets y take it after a second, and says whom a free Lease "b" is for then.
fn after_a_miss(taken_after: u64) -> (Vec<Missed>, Option<String>) {
    let mut roster = roster(&["x", "y"], ["me", "me", "me", "y"]);
    let named = Holding { version: version(2), successor: Some("x".to_owned()), ..held_by("me") };
    roster.holding(at(10), "a", Some(named.clone()));
    let released = Holding { version: version(3), holder: None, duration: Some(RELEASED), ..named };
    roster.holding(at(10), "a", Some(released));
    roster.advise(at(10));
    let taken = Holding { version: version(4), transitions: 4, ..held_by("y") };
    roster.holding(at(10) + Duration::from_millis(taken_after), "a", Some(taken));
    roster.holding(at(12), "b", Some(Holding { version: version(2), holder: None, ..held_by("me") }));
    (roster.take_missed(), roster.advise(at(12)).shards["b"].target.clone())
}

#[test]
fn a_successor_that_does_not_take_what_it_was_given_is_chosen_last() {
    let (missed, target) = after_a_miss(2_000);
    assert_eq!((missed.len(), missed[0].replica.as_str(), missed[0].lease.as_str()), (1, "x", "a"));
    assert_ne!(target.as_deref(), Some("x"), "it has least to do, and missed");
    let (missed, target) = after_a_miss(100);
    assert_eq!((missed, target.as_deref()), (Vec::new(), Some("x")), "it did not have its time");
}

#[test]
fn a_successor_that_says_that_it_cannot_has_missed_however_soon_another_takes_it() {
    let missed = |says_so: bool| {
        let mut roster = roster(&["x", "y"], ["me", "me", "me", "y"]);
        roster.holding(at(10), "a", Some(release(2, Some("x"))));
        if says_so {
            change(&mut roster, at(10), "x", 2, |it| it.unable.insert("a"));
        }
        roster.holding(at(10) + Duration::from_millis(50), "a", Some(next(3, "y", 4)));
        roster.take_missed().len()
    };
    assert_eq!((missed(true), missed(false)), (1, 0));
}

#[test]
fn a_replica_that_starts_while_others_do_takes_its_share_first() {
    let mut alone = roster(&[], ["", "", "", ""]);
    alone.expect(2);
    let patience = |roster: &mut Roster, now| {
        let shards = roster.advise(now).shards;
        LEASES.map(|lease| shards[lease].patience.as_millis())
    };
    assert_eq!(patience(&mut alone, at(0)), [0, 500, 4000, 4000], "two of four are the other's");
    assert_eq!(patience(&mut alone, at(4)), [0; 4], "it has not come");
    let mut late = roster(&["x"], ["me", "me", "", ""]);
    late.expect(2);
    assert_eq!(patience(&mut late, at(0))[2..], [4000; 2], "x has just come, and what is left is its share");
    assert_eq!(patience(&mut late, at(4))[2..], [2000; 2], "x had its time");
}

#[test]
fn a_blind_replica_keeps_what_it_holds_and_is_given_nothing() {
    let mut roster = roster(&["x"], ["x", "me", "me", ""]);
    change(&mut roster, at(0), "x", 2, |it| it.blind = true);
    let shards = roster.advise(at(0)).shards;
    assert_eq!(shards["a"].target.as_deref(), Some("x"));
    assert_eq!(shards["d"].target.as_deref(), Some("me"), "x has less to do, and would not see that it is free");
    assert_eq!(given_away(&mut roster, at(9)), []);
}

#[test]
fn a_proof_about_another_pod_proves_nothing() {
    let mut roster = roster(&["x"], ["x", "me", "me", "me"]);
    let of_pod = Holding { version: version(2), holder_pod: Some("uid-1".to_owned()), ..held_by("x") };
    roster.holding(at(1), "a", Some(of_pod));
    let dead = |pod: &str| Deaths { ended: [("x".to_owned(), Some(pod.to_owned()))].into(), ..Deaths::default() };
    roster.mark_dead(&dead("uid-2"));
    assert_eq!(roster.advise(at(1)).shards["a"].target.as_deref(), None, "x holds it");
    roster.mark_dead(&dead("uid-1"));
    assert_eq!(roster.advise(at(1)).shards["a"].target.as_deref(), Some("me"));
}

#[test]
fn a_move_that_is_called_off_is_not_begun_again_at_once() {
    let mut roster = roster(&["x"], ["me", "me", "me", "me"]);
    let (lease, to) = given_away(&mut roster, at(9)).remove(0);
    roster.miss(at(9), &lease, &to);
    assert_eq!(given_away(&mut roster, at(9)), [], "x was not prepared in time");
}

#[test]
fn what_is_on_its_way_to_a_replica_that_has_just_missed_another_is_counted_where_it_is() {
    let mut roster = roster(&["x", "y", "z"], ["me", "me", "y", "z"]);
    roster.holding(at(0), "d", Some(Holding { version: version(2), weight: Some(2), ..held_by("z") }));
    assert_eq!(given_away(&mut roster, at(9)), [("a".to_owned(), "x".to_owned())]);
    let named = Holding { version: version(2), successor: Some("x".to_owned()), ..held_by("y") };
    roster.holding(at(9), "c", Some(named.clone()));
    roster.miss(at(14), "a", "x");
    assert_eq!(given_away(&mut roster, at(14)), [], "with c at x, a would go to y in its stead");

    roster.holding(at(14), "c", Some(release(3, Some("x"))));
    roster.holding(at(14), "c", Some(next(4, "x", 4)));
    assert_eq!(given_away(&mut roster, at(14)), [("a".to_owned(), "y".to_owned())], "x has taken it");
}

#[test]
fn all_place_by_the_misses_that_any_of_them_has_seen() {
    let target_is = |replica: &str, avoids: Option<&str>| {
        let mut roster = roster(&["x", "y"], ["x", "x", "me", ""]);
        if let Some(avoided) = avoids {
            change(&mut roster, at(0), "x", 2, |it| it.avoids = [(avoided.to_owned(), LEASES.iter().collect())].into());
        }
        roster.advise(at(3)).shards["d"].target.as_deref() == Some(replica)
    };
    assert!(target_is("y", None));
    assert!(target_is("me", Some("y")), "y has missed it, as x has seen");
    assert!(target_is("y", Some("me")), "so have we");
}

#[test]
fn a_membership_counts_for_a_live_pod_of_ours_only_and_a_forged_one_changes_nothing() {
    let mut roster = roster(&[], ["", "", "", ""]);
    let of = |identity: &str, pod: &str, uid: Option<&str>| {
        let profile = Profile { pod: pod.to_owned(), pod_uid: uid.map(str::to_owned), ..profile(pod) };
        Member { profile, ..member(identity) }
    };
    let all = [
        of("a_1", "a", Some("a-uid")),
        of("b_1", "b", None),
        // No such Pod; another Pod of that name; another Pod than the identity says.
        of("x_1", "x", Some("x-uid")),
        of("a_2", "a", Some("other-uid")),
        of("x_2", "a", Some("a-uid")),
    ];
    for member in &all {
        assert!(roster.member(at(1), member.clone()), "while the Pods are not known, all count");
    }
    let seen = |roster: &Roster| {
        let present = roster.present(at(2));
        present.iter().map(|one| one.identity.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(seen(&roster).len(), 1 + all.len());
    let pods = [("me", "me-uid"), ("a", "a-uid"), ("b", "b-uid")];
    roster.see_pods(Some(pods.map(|(name, uid)| (name.to_owned(), uid.to_owned())).into()));
    assert_eq!(seen(&roster), ["a_1", "b_1", "me"]);
    let written_again = |of: &Member| Member { version: version(2), profile: profile("new"), ..of.clone() };
    assert!(!roster.member(at(2), written_again(&all[2])), "nothing is to be decided anew on its account");
    assert!(roster.profile("a_1").is_some() && roster.profile("a_2").is_none());

    assert!(roster.is_stranger("attacker") && roster.is_stranger("c_1"));
    assert!(!roster.is_stranger("me") && !roster.is_stranger("a_7") && !roster.is_stranger("x_1"));
    roster.see_pods(None);
    assert!(!roster.is_stranger("attacker"));
}

#[test]
fn a_look_at_many_memberships_of_one_pod_is_short() {
    let mut roster = roster(&[], ["", "", "", ""]);
    for number in 0..20_000 {
        let profile = Profile { pod_uid: Some("a-uid".to_owned()), ..profile("a") };
        roster.member(at(1), Member { profile, created: number, ..member(&format!("a_{number}")) });
    }
    // Each compared with each other would take minutes.
    assert_eq!(roster.present(at(2)).len(), 2, "the latest of them counts, and we do");
}

/// The takeovers of "a" that were seen since the last look.
fn taken(roster: &mut Roster) -> Vec<(Option<String>, String, Reason, Option<u64>)> {
    let all = roster.take_takeovers().into_iter().filter(|(lease, _)| lease == "a");
    all.map(|(_, it)| (it.from, it.to, it.reason, it.without_leader.map(|time| time.as_secs()))).collect()
}

fn after(from: &str, to: &str, reason: Reason, gap: Option<u64>) -> Vec<(Option<String>, String, Reason, Option<u64>)> {
    vec![(Some(from.to_owned()), to.to_owned(), reason, gap)]
}

fn next(number: u64, holder: &str, transitions: i32) -> Holding {
    Holding { version: version(number), transitions, ..held_by(holder) }
}

fn release(number: u64, successor: Option<&str>) -> Holding {
    let successor = successor.map(str::to_owned);
    Holding { version: version(number), holder: None, duration: Some(RELEASED), successor, ..held_by("") }
}

#[test]
fn each_takeover_has_its_reason() {
    let others = ["other_1", "third_1", "fourth_1"];
    let fresh = || roster(&others, ["other_1"; 4]);
    let silent = |roster: &mut Roster, now: Moment| roster.holding(now, "a", Some(next(2, "third_1", 4)));

    let mut seen = fresh();
    assert!(taken(&mut seen).is_empty(), "what was there before we looked has no past");
    silent(&mut seen, at(15));
    assert_eq!(taken(&mut seen), after("other_1", "third_1", Reason::Expired, Some(15)));

    let mut seen = fresh();
    seen.mark_dead(&dead("other_1"));
    silent(&mut seen, at(3));
    assert_eq!(taken(&mut seen), after("other_1", "third_1", Reason::ProvenDead, Some(3)));

    let mut seen = fresh();
    seen.holding(at(2), "a", Some(next(2, "other_2", 4)));
    assert_eq!(taken(&mut seen), after("other_1", "other_2", Reason::Restarted, Some(2)), "a later process of its Pod");

    let mut seen = fresh();
    seen.holding(at(2), "a", Some(next(2, "somebody", 4)));
    assert_eq!(taken(&mut seen), after("other_1", "somebody", Reason::Overwritten, None));

    let mut seen = fresh();
    seen.holding(at(2), "a", Some(next(2, "third_1", 9)));
    assert_eq!(taken(&mut seen), after("other_1", "third_1", Reason::Unseen, None), "some were missed between");

    let mut seen = fresh();
    seen.holding(at(2), "a", None);
    seen.holding(at(5), "a", Some(next(2, "third_1", 0)));
    assert_eq!(taken(&mut seen), after("other_1", "third_1", Reason::Created, Some(3)));

    let mut seen = fresh();
    let cleared = Holding { holder: None, ..next(2, "", 3) };
    seen.holding(at(2), "a", Some(cleared));
    seen.holding(at(17), "a", Some(next(3, "third_1", 4)));
    assert_eq!(taken(&mut seen), after("other_1", "third_1", Reason::Cleared, Some(15)));

    let mut seen = roster(&others, ["", "other_1", "other_1", "other_1"]);
    seen.holding(at(4), "a", Some(next(2, "third_1", 4)));
    let untold = Reason::Released(Release::Untold);
    assert_eq!(taken(&mut seen), [(None, "third_1".to_owned(), untold, Some(4))], "it was free when we came");
}

#[test]
fn a_release_is_told_by_what_its_holder_said_before() {
    let released = |say: fn(&mut Profile), wanted: Option<&str>, successor: Option<&str>| {
        let mut seen = roster(&["other_1", "third_1"], ["other_1"; 4]);
        change(&mut seen, at(1), "other_1", 2, say);
        let wanted = wanted.map(str::to_owned);
        seen.holding(at(2), "a", Some(Holding { wanted, ..release(2, successor) }));
        seen.holding(at(3), "a", Some(next(3, "third_1", 4)));
        let [(from, to, reason, gap)] = taken(&mut seen).try_into().unwrap();
        assert_eq!((from.as_deref(), to.as_str(), gap), (Some("other_1"), "third_1", Some(1)));
        reason
    };
    let third = Some("third_1");
    for (say, wanted, successor, expected) in [
        ((|_| ()) as fn(&mut Profile), None, third, Release::Balance),
        (|_| (), Some("third"), third, Release::Asked),
        (|_| (), None, None, Release::Untold),
        (|it| it.activity = Activity::Draining, None, third, Release::Stopping),
        (|it| it.unable = ["a"].iter().collect(), None, third, Release::Unable),
        (|it| (it.unable, it.failing) = (["a"].iter().collect(), ["a"].iter().collect()), None, third, Release::Failed),
    ] {
        assert_eq!(released(say, wanted, successor), Reason::Released(expected));
    }
}

#[test]
fn a_renewal_and_a_lease_that_is_not_ours_are_no_takeover() {
    let mut seen = roster(&["other_1"], ["other_1"; 4]);
    seen.holding(at(2), "a", Some(next(2, "other_1", 3)));
    seen.holding(at(2), "foreign", Some(next(2, "other_1", 3)));
    seen.holding(at(3), "foreign", Some(next(3, "third_1", 4)));
    assert!(seen.take_takeovers().is_empty(), "whoever may write Leases fills no memory");
}

/// One placement: what people are told is what is done, as soon as nothing is waited for.
#[test]
fn what_placement_is_said_to_do_is_what_it_does() {
    let mut seen = roster(&["other", "third"], ["me", "me", "me", "other"]);
    assert_eq!(seen.waits(at(1)), [Wait::Settling(at(5))]);
    assert!(given_away(&mut seen, at(1)).is_empty());
    let told = |seen: &Roster, lease: &str| seen.outlook(at(6), lease).unwrap();
    renew(&mut seen, at(6), 2);
    let moves: Vec<_> = LEASES.iter().filter(|lease| told(&seen, lease).balanced != told(&seen, lease).stays).collect();
    let [moved] = moves.as_slice() else { panic!("one move evens it out: {moves:?}") };
    assert_eq!(seen.waits(at(6)), []);
    let target = told(&seen, moved).balanced.unwrap();
    assert_eq!(given_away(&mut seen, at(6)), [((**moved).to_owned(), target)]);
    let candidates = told(&seen, moved).candidates;
    let loads: Vec<_> = candidates.iter().map(|it| (it.identity.as_str(), it.load)).collect();
    assert_eq!(loads, [("me", 3), ("other", 1), ("third", 0)]);
    change(&mut seen, at(6), "third", 9, |it| it.unable = [**moved].iter().collect());
    let unfit: Vec<_> = told(&seen, moved).candidates.iter().map(|it| it.unfit).collect();
    assert_eq!(unfit, [None, None, Some(Unfit::Unable)]);
    assert_eq!(seen.outlook(at(6), "unheard of"), None);
}

#[test]
fn each_wait_is_named() {
    let mut seen = ruled(Rules { rebalance: Rebalance::Never, ..RULES }, &["other"], ["me", "me", "me", "other"]);
    renew(&mut seen, at(6), 2);
    assert_eq!(seen.waits(at(6)), [Wait::Never]);
    change(&mut seen, at(7), "other", 3, |it| it.generation = "new".to_owned());
    seen.advise(at(7));
    let waits = seen.waits(at(7));
    assert!(waits.iter().any(|wait| matches!(wait, Wait::Rollout(_))), "{waits:?}");
    let another = Member { version: version(4), ..member("other") };
    let holdings = seen.holdings.iter().map(|(lease, it)| (lease.clone(), it.what.clone())).collect();
    seen.listed(at(7), vec![another], holdings);
    assert!(seen.waits(at(7)).contains(&Wait::Unheard(vec!["other".to_owned()])));
    seen.blind();
    assert_eq!(seen.waits(at(7)), [Wait::Blind]);
}

/// In the seat of a replica, what is stored is enough to say what placement would do.
#[test]
fn what_is_stored_tells_the_same_as_a_replica_does() {
    let mut seen = roster(&["other", "third"], ["me", "me", "me", "other"]);
    renew(&mut seen, at(6), 2);
    let members = ["me", "other", "third"].map(member).to_vec();
    let holdings = LEASES.iter().zip(["me", "me", "me", "other"]);
    let holdings: Vec<_> = holdings
        .map(|(lease, holder)| (spec_of(lease, vec![lease.to_uppercase()], &held_by(holder)), held_by(holder)))
        .collect();
    for seat in ["me", "other", "third"] {
        let stored = Roster::in_the_seat_of(seat, members.clone(), holdings.clone(), None).unwrap();
        for lease in LEASES {
            assert_eq!(stored.outlook(Roster::SEATED_AT, lease), seen.outlook(at(6), lease), "{lease} from {seat}");
        }
    }
    assert!(Roster::in_the_seat_of("gone", members, holdings, None).is_none());
}
