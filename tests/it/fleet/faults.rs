//! What goes wrong: a list with times, drawn from the seed, of which any part can be left out.

use std::time::Duration;

use fastrand::Rng;
use leasehold::{
    config::{LONGEST_LEASE, Rebalance},
    protocol::{
        event::{Event, Verdict},
        lease::{Record, Role},
    },
};

use super::{
    host::{Kind, LEASE, Template},
    network::{Refused, SILENCE_NOTICED, term_of},
    world::{What, World},
};
use crate::timeline::{Global, MILLI, SECOND};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evil {
    Crash,
    Restart,
    RestartInProcess,
    Terminate,
    /// The second signal follows the first.
    TerminateAtOnce,
    Join,
    Roll,
    Pause,
    Stutter,
    Cut,
    Slow,
    Refuse,
    Lag,
    LagAll,
    BreakWatch,
    Silence,
    Judge,
    Fail,
    Deafen,
    Unprepare,
    Want,
    Edit,
    Stranger,
    Requests,
    Watches,
    Tasks,
    Stalls,
}

/// One thing that goes wrong.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    what: Evil,
    /// Everything else about it is drawn from this.
    seed: u64,
}

pub(super) const ALL: &[Evil] = &[
    Evil::Crash,
    Evil::Restart,
    Evil::RestartInProcess,
    Evil::Terminate,
    Evil::TerminateAtOnce,
    Evil::Join,
    Evil::Join,
    Evil::Roll,
    Evil::Roll,
    Evil::Pause,
    Evil::Stutter,
    Evil::Cut,
    Evil::Cut,
    Evil::Slow,
    Evil::Refuse,
    Evil::Lag,
    Evil::LagAll,
    Evil::BreakWatch,
    Evil::Silence,
    Evil::Judge,
    Evil::Fail,
    Evil::Deafen,
    Evil::Unprepare,
    Evil::Want,
    Evil::Edit,
    Evil::Stranger,
];

/// What needs no more than a few replicas and one kind: where elections are hardest.
pub(super) const DUEL: &[Evil] = &[
    Evil::Crash,
    Evil::Restart,
    Evil::Pause,
    Evil::Pause,
    Evil::Cut,
    Evil::Cut,
    Evil::Lag,
    Evil::LagAll,
    Evil::BreakWatch,
    Evil::Silence,
    Evil::Refuse,
    Evil::Judge,
    Evil::Edit,
    Evil::Edit,
];

impl World {
    /// Draws what goes wrong for so long from now on, `apart` at the most; some things go wrong at random all the time.
    pub(super) fn plan_faults(&mut self, of: &[Evil], time: Global, apart: Global) {
        let mut at = self.now();
        for what in [Evil::Requests, Evil::Watches, Evil::Tasks, Evil::Stalls] {
            self.plan_fault(at, what);
        }
        let end = at + time;
        loop {
            at += self.rng.u64(apart / 25..apart);
            if at >= end {
                return;
            }
            let what = of[self.rng.usize(0..of.len())];
            self.plan_fault(at, what);
        }
    }

    fn plan_fault(&mut self, at: Global, what: Evil) {
        let fault = Fault { what, seed: self.rng.u64(..) };
        self.at(at, What::Fault(self.faults.len()));
        self.faults.push(fault);
    }

    pub(super) fn strike(&mut self, index: usize) {
        if self.skip.contains(&index) {
            return;
        }
        let Fault { what, seed } = self.faults[index];
        let rng = &mut Rng::with_seed(seed);
        let alive = self.alive();
        self.note(format_args!("fault {index}: {what:?}"));
        self.count(name(what));
        match what {
            Evil::Requests => return self.trouble.requests = true,
            Evil::Watches => return self.trouble.watches = true,
            Evil::Tasks => return self.trouble.tasks = true,
            Evil::Stalls => return self.trouble.stalls = true,
            _ => {}
        }
        let Some(&host) = alive.get(rng.usize(0..alive.len().max(1))) else { return };
        let template = self.hosts[host].template.clone();
        let shard = rng.usize(0..template.kinds.len());
        let kind = template.kinds[shard].clone();
        let (now, time) = (self.now(), rng.u64(100..40_000) * MILLI);
        let until = now + time;
        [0, time, time + 5 * SECOND].into_iter().for_each(|wait| self.changed(now + wait));
        let (few, many) = (self.active().len() < 2, self.active().len() >= 6);
        let weather = &mut self.hosts[host].weather;
        match what {
            Evil::Crash => self.crash(host),
            Evil::Restart => self.restart(host, time / 4),
            Evil::RestartInProcess => self.restart_in_process(host, time / 20),
            Evil::Terminate if !few => self.terminate(host),
            Evil::TerminateAtOnce if !few => {
                self.terminate(host);
                self.at(now + time / 10, What::Happens(host, Event::Signalled));
            }
            Evil::Join if !many => {
                let template = skewed(rng, template.clone());
                self.join(&template);
            }
            Evil::Roll => self.roll_one(rng, host),
            Evil::Pause => self.pause(host, time),
            Evil::Stutter => {
                weather.stutters_until = until;
                self.at(now, What::Stutters(host));
            }
            Evil::Cut => self.cut(host, time),
            Evil::Slow => weather.slow_until = until,
            Evil::Refuse => {
                weather.refused_until = until;
                weather.refused = if rng.bool() { Refused::Acquisitions } else { Refused::Everything };
            }
            Evil::Lag => {
                weather.lag_until = until;
                weather.lag = 300 * MILLI..6 * SECOND;
            }
            Evil::LagAll => self.all_lag = (until, 100 * MILLI..rng.u64(1..8) * SECOND),
            Evil::BreakWatch => {
                weather.down_until = until;
                self.fail_watch(host);
            }
            Evil::Silence => {
                weather.silent_after_lists = rng.bool();
                self.silence(host, now + 2 * time, SILENCE_NOTICED);
            }
            Evil::Judge if rng.u8(..) < 90 => {
                self.deny(host, &kind.name);
                self.at(until, What::Allows { host, kind: kind.name });
            }
            Evil::Judge => {
                let verdict = match rng.u8(0..4) {
                    0 => Verdict::Unknown("no answer".to_owned()),
                    _ if self.hosts[host].blocked.contains(&kind.name) => Verdict::Runnable,
                    _ => Verdict::Blocked("its CRD is missing".to_owned()),
                };
                self.judge(host, shard, verdict);
            }
            Evil::Fail => self.fails_or_works(host, &kind.name),
            Evil::Deafen => self.deafen(host, until),
            Evil::Unprepare => weather.unprepared_until = until,
            Evil::Want => {
                let there = rng.bool().then(|| self.hosts[host].pod.clone());
                self.want(&kind.lease, there);
            }
            Evil::Edit => self.edit_by_hand(rng, &kind),
            Evil::Stranger if self.has_one_lease(&kind.name) => self.stranger_comes(&kind.lease, 2 * time),
            _ => {}
        }
        if self.active().is_empty() {
            self.join(&template);
        }
    }

    /// The kind fails there from now on, or works again.
    fn fails_or_works(&mut self, host: usize, kind: &str) {
        if !self.hosts[host].failing.remove(kind) {
            self.hosts[host].failing.insert(kind.to_owned());
            self.fail(kind);
        }
    }

    /// A step of a rollout, of a rollback, or of the next rollout already.
    fn roll_one(&mut self, rng: &mut Rng, host: usize) {
        let template = self.hosts[host].template.clone();
        let alive = self.alive().into_iter().map(|host| &self.hosts[host].template);
        let newest = alive.max_by_key(|it| it.revision).cloned().filter(|it| it.revision.is_some());
        // A Deployment never gives a revision twice, also when none of its Pods is left.
        let last = self.hosts.iter().filter_map(|it| it.template.revision).fold(self.last_revision, u64::max);
        let to = match newest {
            Some(newest) if newest.revision != template.revision || rng.bool() => newest,
            _ => changed(rng, template.next(last + 1)),
        };
        let older = template.revision < to.revision;
        self.last_revision = self.last_revision.max(to.revision.unwrap_or(1));
        self.join(&to);
        if older {
            self.terminate(host);
        }
    }

    /// The running terms there do not hear of their objects until then.
    pub(super) fn deafen(&mut self, host: usize, until: Global) {
        self.hosts[host].weather.deaf_until = until;
        let it = &self.hosts[host];
        let tasks = it.tasks.iter().map(|(shard, task)| (*shard, task.term));
        let standbys = it.standbys.iter().map(|(shard, (term, _))| (*shard, *term));
        let terms: Vec<_> = tasks.chain(standbys).collect();
        for (shard, term) in terms {
            self.task_hears(host, shard, term, false);
            if until < Global::MAX {
                self.at(until, What::TaskHears { host, shard, term, hears: true });
            }
        }
    }

    /// All replicas keep this kind's record, and those of all that it shares a Lease with anywhere, on the same Lease.
    fn has_one_lease(&self, kind: &str) -> bool {
        let templates: Vec<_> = self.alive().into_iter().map(|host| &self.hosts[host].template).collect();
        let mut kinds = templates.iter().flat_map(|template| template.group_of(kind)).map(|kind| &kind.name);
        kinds.all(|kind| {
            let mut leases = templates.iter().filter_map(|template| template.kind(kind)).map(|kind| &kind.lease);
            let first = leases.next();
            leases.all(|lease| Some(lease) == first)
        })
    }

    /// Each replica knows of the term that the Lease is in. What a hand takes from the record is lost
    /// for a replica that never saw it: docs/safety.md, what Leasehold does not promise.
    fn is_known(&self, kind: &Kind) -> bool {
        let Some(stored) = self.server.leases.get(&kind.lease) else { return false };
        self.alive()
            .into_iter()
            .filter(|&host| self.hosts[host].template.kind(&kind.name).is_some())
            .all(|host| self.hosts[host].knows.get(&kind.lease) == Some(&term_of(stored)))
    }

    fn edit_by_hand(&mut self, rng: &mut Rng, kind: &Kind) {
        if rng.u8(0..6) == 0 {
            return self.edit_membership(rng);
        }
        let what = rng.u8(0..14);
        let loses_record = matches!(what, 0..=4);
        if !self.has_one_lease(&kind.name)
            || (loses_record && !self.is_known(kind))
            || !self.server.leases.contains_key(&kind.lease)
        {
            return;
        }
        self.count("edit by hand");
        if loses_record {
            self.no_start_before = self.no_start_before.max(self.now() + 2 * LEASE);
        }
        if what == 6 {
            let most = u64::try_from(LONGEST_LEASE.as_micros()).unwrap();
            self.counted_until = self.counted_until.max(self.now() + most + 2 * LEASE);
        }
        self.touched(&kind.lease);
        self.note(format_args!("a hand edits {}, {what}", kind.lease));
        let backup = self.server.backups.get(&kind.lease).cloned();
        let edit = |record: &mut Record| match what {
            1 => record.holder = None,
            2 => (record.holder, record.transitions) = (None, record.transitions.saturating_add(1)),
            3 => record.duration = Some(Duration::from_secs(1)),
            4 => {
                // The content of an older day, over what is stored now.
                if let Some(backup) = backup {
                    *record = Record { version: record.version.clone(), ..Record::clone(&backup) };
                }
            }
            5 => record.duration = None,
            6 => record.duration = Some(Duration::from_secs(2_147_483_647)),
            7 => record.holder = Some("a-hand".to_owned()),
            8 => record.transitions = i32::MAX,
            9 => record.transitions = i32::MAX - 1,
            10 => record.role = Role::None,
            11 => {
                (record.successor, record.weight, record.holder_pod, record.instance) = (None, None, None, None);
                record.kinds.clear();
            }
            12 => (record.successor, record.weight) = (Some("x".repeat(2_000)), Some(4_000_000_000)),
            _ => record.transitions = -5,
        };
        let commit = if what == 0 { self.server.delete(&kind.lease) } else { self.server.edit(&kind.lease, edit) };
        if let Some(commit) = commit {
            self.show(&commit);
        }
    }

    /// A hand mends what a hand has broken, and no time would.
    pub(super) fn mend_by_hand(&mut self) {
        let most = Duration::from_micros(2 * LEASE);
        let is_broken = |record: &Record| record.duration.is_some_and(|duration| duration > most);
        let broken: Vec<_> = self.server.leases.values().filter(|it| is_broken(it)).map(|it| it.name.clone()).collect();
        for name in broken {
            self.touched(&name);
            let mend = |record: &mut Record| record.duration = Some(Duration::from_micros(LEASE));
            if let Some(commit) = self.server.edit(&name, mend) {
                self.show(&commit);
            }
        }
    }

    fn edit_membership(&mut self, rng: &mut Rng) {
        let members: Vec<_> =
            self.server.leases.values().filter(|it| it.role == Role::Replica).map(|it| it.name.clone()).collect();
        let Some(name) = members.get(rng.usize(0..members.len().max(1))) else { return };
        let what = rng.u8(0..6);
        self.note(format_args!("a hand edits the membership {name}, {what}"));
        self.count("membership edited by hand");
        let edit = |record: &mut Record| match what {
            1 => record.holder = None,
            2 => record.duration = Some(Duration::from_secs(2_147_483_647)),
            3 => record.profile = None,
            4 => record.role = Role::None,
            _ => {
                if let Some(profile) = &mut record.profile {
                    (profile.capacity, profile.revision) = (0, Some(u64::MAX));
                }
            }
        };
        let commit = if what == 0 { self.server.delete(name) } else { self.server.edit(name, edit) };
        if let Some(commit) = commit {
            self.show(&commit);
        }
    }
}

/// The file was changed that the others were started with.
fn skewed(rng: &mut Rng, mut template: Template) -> Template {
    match rng.u8(0..12) {
        // A replica that leads a group without one of its kinds leaves that one out, until it is rolled.
        0 if template.kinds.len() > 1 => {
            let kind = template.kinds[rng.usize(0..template.kinds.len())].name.clone();
            if template.group_of(&kind).len() == 1 {
                template.kinds.retain(|it| it.name != kind);
            }
        }
        1 => template.kinds.iter_mut().for_each(|kind| kind.weight = rng.u32(1..=4)),
        2 => template.rebalance = [Rebalance::Never, Rebalance::OnRestart][rng.usize(0..2)],
        _ => {}
    }
    template
}

/// What a rollout may bring.
pub(super) fn changed(rng: &mut Rng, mut template: Template) -> Template {
    match rng.u8(0..12) {
        0 => rename(&mut template, rng),
        1 => retime(&mut template),
        2 => {
            let number = template
                .kinds
                .iter()
                .filter_map(|kind| kind.name.bytes().next())
                .max()
                .map_or(0, |last| last - b'A' + 1);
            template.kinds.push(Kind::new(usize::from(number)));
        }
        3 if template.kinds.len() > 1 => {
            template.kinds.remove(rng.usize(0..template.kinds.len()));
        }
        4 => template.declines = !template.declines,
        5 | 6 => regroup(&mut template, rng),
        _ => {}
    }
    template.in_order();
    template
}

/// Other kinds share Leases than before: all of them, some, or none.
pub(super) fn regroup(template: &mut Template, rng: &mut Rng) {
    template.ungroup();
    let kinds = template.kinds.len();
    match rng.u8(0..4) {
        0 => template.group(0..kinds, "single"),
        // The group keeps the Lease of one of its kinds.
        1 => {
            let lease = template.kinds[rng.usize(0..kinds)].lease.clone();
            let first = rng.usize(0..kinds);
            let taken = template.kinds.iter().position(|kind| kind.lease == lease).unwrap_or(0);
            template.group(first.min(taken)..first.max(taken) + 1, &lease);
        }
        2 => {
            let first = rng.usize(0..kinds);
            template.group(first..kinds, "group");
        }
        _ => {}
    }
}

/// One kind's record is kept on another Lease; if it was of a group, it leaves that.
pub(super) fn rename(template: &mut Template, rng: &mut Rng) {
    let kind = rng.usize(0..template.kinds.len());
    template.kinds[kind].lease.insert_str(0, "new-");
    template.in_order();
}

/// Leases last longer, or as long as before.
pub(super) fn retime(template: &mut Template) {
    let timings = &mut template.timings;
    let longer = timings.lease_duration == Duration::from_micros(LEASE);
    (timings.lease_duration, timings.renew_deadline) = if longer {
        (Duration::from_secs(20), Duration::from_secs(14))
    } else {
        (Duration::from_micros(LEASE), Duration::from_secs(10))
    };
}

fn name(what: Evil) -> &'static str {
    match what {
        Evil::Crash => "fault: crash",
        Evil::Restart => "fault: restart",
        Evil::RestartInProcess => "fault: restart in process",
        Evil::Terminate => "fault: terminate",
        Evil::TerminateAtOnce => "fault: terminate at once",
        Evil::Join => "fault: join",
        Evil::Roll => "fault: roll",
        Evil::Pause => "fault: pause",
        Evil::Stutter => "fault: stutter",
        Evil::Cut => "fault: cut",
        Evil::Slow => "fault: slow",
        Evil::Refuse => "fault: refuse",
        Evil::Lag => "fault: lag",
        Evil::LagAll => "fault: lag of all",
        Evil::BreakWatch => "fault: broken watch",
        Evil::Silence => "fault: silent watch",
        Evil::Judge => "fault: judge",
        Evil::Fail => "fault: fail",
        Evil::Deafen => "fault: deafen",
        Evil::Unprepare => "fault: unprepared",
        Evil::Want => "fault: want",
        Evil::Edit => "fault: edit",
        Evil::Stranger => "fault: stranger",
        Evil::Requests => "fault: requests",
        Evil::Watches => "fault: watches",
        Evil::Tasks => "fault: tasks",
        Evil::Stalls => "fault: stalls",
    }
}
