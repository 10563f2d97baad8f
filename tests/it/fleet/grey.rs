//! One replica is grey: it is there, and something about it does not work, for ten minutes. What does that cost?

use std::collections::BTreeMap;

use super::{
    host::{LEASE, Template},
    network::{Refused, SILENCE_NOTICED},
    scenarios::begin,
    world::{What, World},
};
use crate::timeline::{Global, MILLI, SECOND};

/// For how long it is looked at, after the first minute.
const TIME: Global = 600 * SECOND;
const FIRST: Global = 60 * SECOND;
const SAMPLE: Global = 50 * MILLI;

/// What one grey replica may cost each kind.
struct Price {
    /// The longest time without a leader.
    gap: Global,
    /// All such time together, of the ten minutes.
    lost: Global,
    /// Terms that begin in them.
    terms: usize,
}

/// When no renewal is lost: a move that fails, and a hundredth of the time.
const USUAL: Price = Price { gap: 4 * SECOND, lost: TIME / 100, terms: 4 };

impl Price {
    fn of(grey: Grey) -> Self {
        match grey {
            // It led and has lost its renewals: a Lease, the grace, and a second.
            Grey::RequestsRefused => Self { gap: LEASE + 2 * SECOND + SECOND, ..USUAL },
            // A reconciler that cannot stand by is found to be deaf when it leads, after ten seconds; others when they take a
            // kind that is free. No kind is tried there again for ten minutes, and then for two seconds.
            Grey::Deaf | Grey::DeafAfterLists | Grey::HearsNothing => {
                Self { gap: 10 * SECOND + USUAL.gap, lost: 10 * SECOND + USUAL.gap, ..USUAL }
            }
            _ => USUAL,
        }
    }
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grey {
    AcquisitionsRefused,
    RequestsRefused,
    Lags,
    Silent,
    SilentAfterLists,
    Slow,
    /// Neither lists nor watches of its objects come through.
    Deaf,
    /// Lists do.
    DeafAfterLists,
    /// No watch comes through, of its objects or of the Leases; lists do.
    HearsNothing,
    Stutters,
    Unprepared,
    Fails,
}

pub(super) fn acquisitions_refused(world: &mut World) {
    play(world, Grey::AcquisitionsRefused);
}

pub(super) fn requests_refused(world: &mut World) {
    play(world, Grey::RequestsRefused);
}

pub(super) fn lags(world: &mut World) {
    play(world, Grey::Lags);
}

pub(super) fn silent(world: &mut World) {
    play(world, Grey::Silent);
}

pub(super) fn silent_after_lists(world: &mut World) {
    play(world, Grey::SilentAfterLists);
}

pub(super) fn slow(world: &mut World) {
    play(world, Grey::Slow);
}

pub(super) fn deaf(world: &mut World) {
    play(world, Grey::Deaf);
}

pub(super) fn deaf_after_lists(world: &mut World) {
    play(world, Grey::DeafAfterLists);
}

pub(super) fn hears_nothing(world: &mut World) {
    play(world, Grey::HearsNothing);
}

pub(super) fn stutters(world: &mut World) {
    play(world, Grey::Stutters);
}

pub(super) fn unprepared(world: &mut World) {
    play(world, Grey::Unprepared);
}

pub(super) fn fails(world: &mut World) {
    play(world, Grey::Fails);
}

fn play(world: &mut World, grey: Grey) {
    let (kinds, replicas) = (world.rng.usize(3..=6), world.rng.usize(3..=4));
    let mut template = Template::new(kinds);
    template.declines = world.flip(40);
    // It is grey from its start, or becomes grey while it leads.
    let host = if world.flip(128) {
        begin(world, &template, replicas);
        world.rng.usize(0..replicas)
    } else {
        begin(world, &template, replicas - 1);
        world.join(&template).unwrap()
    };
    let kind = template.kinds[world.rng.usize(0..kinds)].name.clone();
    let since = world.now();
    afflict(world, host, grey, &kind);
    watch(world, &template, grey, since);
}

fn afflict(world: &mut World, host: usize, grey: Grey, kind: &str) {
    let (now, ever) = (world.now(), Global::MAX);
    world.note(format_args!("{} is grey: {grey:?}", world.name(host)));
    let weather = &mut world.hosts[host].weather;
    match grey {
        Grey::AcquisitionsRefused => (weather.refused_until, weather.refused) = (ever, Refused::Acquisitions),
        Grey::RequestsRefused => (weather.refused_until, weather.refused) = (ever, Refused::Everything),
        Grey::Lags => (weather.lag_until, weather.lag) = (ever, SECOND..6 * SECOND),
        Grey::Silent | Grey::SilentAfterLists => {
            weather.silent_after_lists = grey == Grey::SilentAfterLists;
            world.silence(host, ever, SILENCE_NOTICED);
        }
        Grey::Slow => weather.slow_until = ever,
        Grey::Deaf | Grey::DeafAfterLists => {
            weather.unprepared_until = if grey == Grey::Deaf { ever } else { 0 };
            world.deafen(host, ever);
        }
        Grey::HearsNothing => {
            weather.silent_after_lists = true;
            weather.unprepared_until = 0;
            world.silence(host, ever, SILENCE_NOTICED);
            world.deafen(host, ever);
        }
        Grey::Stutters => {
            weather.stutters_until = ever;
            world.at(now, What::Stutters(host));
        }
        Grey::Unprepared => weather.unprepared_until = ever,
        Grey::Fails => {
            world.hosts[host].failing.insert(kind.to_owned());
            world.fail(kind);
        }
    }
}

fn watch(world: &mut World, template: &Template, grey: Grey, since: Global) {
    let price = Price::of(grey);
    let mut lost = BTreeMap::<&str, Global>::new();
    let mut gone_since = BTreeMap::<&str, Global>::new();
    let mut worst = (0, "");
    while world.now() < since + FIRST + TIME {
        world.run_for(SAMPLE);
        for kind in template.kinds.iter().map(|kind| kind.name.as_str()) {
            if (0..world.hosts.len()).any(|host| world.hosts[host].serves(kind, world.now())) {
                gone_since.remove(kind);
                continue;
            }
            let began = *gone_since.entry(kind).or_insert(world.now());
            worst = worst.max((world.now() - began, kind));
            if world.now() > since + FIRST {
                *lost.entry(kind).or_default() += SAMPLE;
            }
        }
    }
    let (longest, of) = worst;
    let (kind, most) = lost.into_iter().max_by_key(|(_, time)| *time).unwrap_or(("", 0));
    world.note(format_args!("longest gap {} ms ({of}), most lost {} ms ({kind})", longest / MILLI, most / MILLI));
    world.demand(longest <= price.gap, || format!("{of} was not led for {} ms", longest / MILLI));
    world.demand(most <= price.lost, || format!("{kind} was not led for {} ms of ten minutes", most / MILLI));
    let terms = world.terms_since(since + FIRST);
    let often = terms.iter().find(|(_, hosts)| hosts.len() > price.terms);
    world.demand(often.is_none(), || format!("{often:?} has moved more than {} times", price.terms));
}
