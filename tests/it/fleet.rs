//! Many replicas and many kinds against a model of the API server and of the network: starts, leaves, crashes, rollouts,
//! configurations that differ, and random schedules of everything that goes wrong.
//!
//! What is driven is the product's own core, [`leasehold::protocol::replica::Replica`]; what is modelled is the world.
//! Always: never two replicas that may write for one kind, no release under running work, no Lease taken before it
//! expires without a release or a proof, none deleted that is renewed, no kind moved for balance twice when nothing has
//! changed. When nothing happens any more: every kind is led within the bound, the spread is even, and twenty settle
//! periods pass without a move. Beside one grey replica: every kind is led nearly all the time.
//! A failure prints the smallest schedule that fails, what happened in it, and the line that plays it again.

mod chaos;
mod faults;
mod grey;
mod host;
mod judge;
mod network;
mod play;
mod rollouts;
mod scenarios;
mod server;
mod stranger;
mod world;

use self::play::Scenario;

macro_rules! scenarios {
    ($($test:ident: $name:literal, $plays:path, $seeds:expr;)*) => {
        const SCENARIOS: &[Scenario] = &[$(Scenario { name: $name, plays: $plays, seeds: $seeds }),*];

        $(
            #[test]
            fn $test() {
                scenario($name).play(1..=seeds($seeds));
            }
        )*
    };
}

scenarios! {
    a_fresh_start_ends_even_and_moves_next_to_nothing: "fresh_start", scenarios::fresh_start, 40;
    a_fresh_start_gives_no_replica_more_than_its_share: "fresh_start_shares", scenarios::fresh_start_shares, 20;
    a_replica_that_joins_gets_its_share_and_nothing_else_moves: "join", scenarios::join, 40;
    a_replica_that_joins_and_fills_no_cache_gets_nothing: "join_in_vain", scenarios::join_in_vain, 10;
    a_replica_that_leaves_hands_over_its_kinds_and_nothing_else_moves: "leave", scenarios::leave, 40;
    a_replica_that_is_told_twice_stops_at_once_and_releases: "abort", scenarios::abort, 20;
    replicas_that_leave_together_hand_over_their_kinds_and_nothing_else_moves: "scale_down", scenarios::scale_down, 40;
    the_kinds_of_a_crashed_replica_are_taken_once_each_and_nothing_else_moves: "crash", scenarios::crash, 40;
    a_container_that_restarts_takes_its_kinds_back: "restart", scenarios::restart, 40;
    a_process_that_begins_another_replica_gets_a_share_again: "restart_in_process", scenarios::restart_in_process, 20;
    a_kind_goes_where_a_hand_wants_it_and_stays_there: "wanted", scenarios::wanted, 20;
    unequal_weights_come_to_rest_when_no_move_evens_anything_out: "weights", scenarios::weights, 20;
    a_kind_that_fails_goes_round_until_it_works_and_moves_no_other: "failing", scenarios::failing, 8;
    a_kind_that_a_replica_cannot_run_is_led_by_another: "blocked", scenarios::blocked_kind, 20;
    a_kind_that_is_denied_to_a_replica_is_led_by_another: "denied", scenarios::denied_kind, 20;
    a_replica_that_cannot_ask_is_not_ready_for_a_while_and_given_nothing: "unsure", scenarios::unsure, 20;
    replicas_that_disagree_about_weights_come_to_rest: "skewed_weights", scenarios::skewed_weights, 20;
    kinds_stay_where_they_are_if_the_configuration_says_so: "modes", scenarios::modes, 20;
    two_deployments_share_by_capacity: "two_deployments", scenarios::two_deployments, 30;
    a_lease_that_another_elector_holds_is_left_to_it: "stranger", scenarios::stranger, 30;

    a_rollout_moves_every_kind_exactly_once: "rollout", rollouts::rollout, 40;
    a_rollout_that_is_paused_half_way_moves_no_kind_twice: "rollout_paused", rollouts::rollout_paused, 20;
    a_rollout_that_is_rolled_back_moves_back_only_what_had_moved: "rollout_rolled_back", rollouts::rollout_rolled_back, 20;
    a_rollout_whose_new_pods_crash_moves_nothing: "rollout_crashes", rollouts::rollout_crashes, 20;
    a_rollout_that_renames_a_lease_never_has_two_leaders: "rollout_renames", rollouts::rollout_renames, 40;
    a_rollout_that_moves_the_leases_to_another_namespace_never_has_two_leaders: "rollout_moves_namespace", rollouts::rollout_moves_namespace, 30;
    a_rollout_that_begins_uneven_leaves_no_new_replica_idle_for_long: "rollout_uneven", rollouts::rollout_uneven, 20;
    replicas_that_disagree_on_the_lock_of_a_kind_never_both_lead_it: "two_names", rollouts::two_names, 60;
    a_rollout_that_regroups_kinds_never_has_two_leaders: "rollout_regroups", rollouts::rollout_regroups, 60;
    a_rollout_to_one_lock_for_all_and_back_never_has_two_leaders: "rollout_to_single", rollouts::rollout_to_single_and_back, 30;
    replicas_that_disagree_on_groups_never_both_lead_a_kind: "two_groupings", rollouts::two_groupings, 60;
    a_group_starts_and_stops_as_one: "group", rollouts::group_leaves_and_joins, 40;
    a_rollout_that_changes_timings_moves_every_kind_exactly_once: "rollout_retimes", rollouts::rollout_retimes, 20;
    a_rollout_may_add_and_remove_kinds: "rollout_changes_kinds", rollouts::rollout_changes_kinds, 20;
    the_lease_of_a_removed_kind_is_collected_when_no_replica_needs_it: "removed", rollouts::removed, 10;

    a_replica_whose_acquisitions_are_refused_costs_next_to_nothing: "grey_acquisitions_refused", grey::acquisitions_refused, 10;
    a_replica_whose_requests_are_refused_costs_one_gap: "grey_requests_refused", grey::requests_refused, 10;
    a_replica_whose_watch_lags_costs_next_to_nothing: "grey_lags", grey::lags, 10;
    a_replica_whose_watch_is_silent_costs_next_to_nothing: "grey_silent", grey::silent, 10;
    a_replica_whose_watch_is_silent_after_each_list_costs_next_to_nothing: "grey_silent_after_lists", grey::silent_after_lists, 10;
    a_replica_whose_requests_are_slow_costs_next_to_nothing: "grey_slow", grey::slow, 10;
    a_replica_that_is_deaf_to_its_objects_costs_one_gap: "grey_deaf", grey::deaf, 10;
    a_replica_that_lists_its_objects_and_is_deaf_then_costs_one_gap: "grey_deaf_after_lists", grey::deaf_after_lists, 10;
    a_replica_to_which_no_watch_comes_through_costs_one_gap: "grey_hears_nothing", grey::hears_nothing, 10;
    a_replica_that_is_paused_again_and_again_costs_next_to_nothing: "grey_stutters", grey::stutters, 10;
    a_replica_whose_standby_is_never_prepared_costs_next_to_nothing: "grey_unprepared", grey::unprepared, 10;
    a_replica_where_a_kind_always_fails_costs_next_to_nothing: "grey_fails", grey::fails, 10;

    never_two_writers_and_all_comes_to_rest_whatever_happens: "chaos", chaos::chaos, 600;
    never_two_writers_of_one_kind_whatever_happens_to_few_replicas: "duel", chaos::duel, 900;
}

/// As many as `SEEDS` says, or as many.
fn seeds(usual: u64) -> u64 {
    number("SEEDS").unwrap_or(usual)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn scenario(name: &str) -> &'static Scenario {
    SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap()
}

/// Plays one schedule again, by the line that a failure has printed.
#[test]
fn fleet_again() {
    let (Ok(name), Some(seed)) = (std::env::var("SCENARIO"), number("SEED")) else { return };
    let skip = std::env::var("SKIP").unwrap_or_default();
    scenario(&name).again(seed, &skip.split(',').filter_map(|fault| fault.parse().ok()).collect());
}

/// Plays as many schedules as `SOAK` says, on all processors, from the seed `FROM`; of one scenario, or of all.
#[test]
fn soak_fleet() {
    let Some(schedules) = number("SOAK") else { return };
    let only = std::env::var("SCENARIO").ok();
    let of = |it: &&Scenario| only.as_ref().is_none_or(|only| *only == it.name);
    let chosen: Vec<_> = SCENARIOS.iter().filter(of).collect();
    play::soak(&chosen, schedules, number("FROM").unwrap_or(1_000_000));
}
