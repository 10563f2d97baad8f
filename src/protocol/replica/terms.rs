//! One shard at a time: its election is driven, its slot told where that stands, and its work started and ended.

use std::time::Duration;

use super::{DEAF_PAUSE, DEAF_PAUSE_MOST, ROUNDS, Replica, Subject};
use crate::config::{LockKind, OnLoss};
use crate::protocol::{
    election::{self, Standing, Step},
    event::{Deaths, Effect, Ending, Hearing, KindIndex, Loss, Notice, Request, ShardIndex, TermNumber, Verdict},
    moment::Moment,
    roster,
    shard::{DEAF_SHOWN, Standby},
    slot::{self, Command, Handover, Outcome, State},
};

impl Replica {
    // What becomes of terms and standbys.

    pub(super) fn on_standby_prepared(&mut self, index: ShardIndex, term: TermNumber) {
        let standby = self.shards[index].standby.as_mut().filter(|standby| standby.term == term);
        if let Some(standby) = standby {
            standby.prepared = true;
            self.stale = true;
            self.note(Notice::Prepared(index));
        }
    }

    pub(super) fn on_standby_ended(&mut self, kind: KindIndex, term: TermNumber, why: String, now: Moment) {
        let Some(index) = self.shard_of(kind) else { return };
        if self.shards[index].standby.take_if(|standby| standby.term == term).is_some() {
            self.stale = true;
            self.fail(index, kind, why);
            // It may have failed for want of a CRD or a permission.
            self.effects.push(Effect::Ask(kind));
            self.tell(index, slot::Event::StandbyFailed, now);
        }
    }

    pub(super) fn on_heard(&mut self, kind: KindIndex, term: TermNumber, hearing: Hearing, now: Moment) {
        let Some(index) = self.shard_of(kind) else { return };
        let shard = &mut self.shards[index];
        let stands_by = shard.standby.as_ref().is_some_and(|standby| standby.term == term);
        let works = shard.task == Some(term);
        shard.stale |= works && !stands_by;
        let Some(member) = shard.member(kind) else { return };
        if stands_by {
            member.standby_hears = hearing == Hearing::Hears;
        } else if works {
            member.deaf = match hearing {
                Hearing::Hears => None,
                Hearing::Deaf(why) => Some((member.deaf.take().map_or(now, |(since, _)| since), why)),
            };
        }
    }

    /// Shows what the term hears.
    fn show_hearing(&mut self, index: ShardIndex, now: Moment) {
        let shard = &mut self.shards[index];
        for (kind, member) in shard.kinds().zip(&mut shard.members) {
            let hearing = match &member.deaf {
                None => Hearing::Hears,
                Some((since, _)) if now < *since + DEAF_SHOWN => continue,
                Some((_, why)) => Hearing::Deaf(why.clone()),
            };
            if hearing != member.hearing {
                member.hearing = hearing.clone();
                self.effects.push(Effect::Note(Notice::Heard(kind, hearing)));
            }
        }
    }

    /// The kinds of a group share state: when one fails, the others finish what runs, and the term ends.
    pub(super) fn on_task_ended(&mut self, kind: KindIndex, term: TermNumber, outcome: Outcome, now: Moment) {
        let Some(index) = self.shard_of(kind) else { return };
        let shard = &mut self.shards[index];
        if shard.task != Some(term) {
            return;
        }
        let asked = shard.slot.state() != State::Running;
        let Some(member) = shard.member(kind) else { return };
        let name = &member.kind;
        let why = match outcome {
            Outcome::Failed(why) => format!("the reconciler of {name} failed: {why}"),
            Outcome::Panicked(why) => format!("the reconciler of {name} panicked: {why}"),
            Outcome::Finished if !asked => format!("the reconciler of {name} ended although its term went on"),
            Outcome::Finished | Outcome::Aborted => return,
        };
        shard.broken.get_or_insert_with(|| why.clone());
        self.fail(index, kind, why);
        self.tell(index, slot::Event::Broken, now);
    }

    pub(super) fn on_term_ended(
        &mut self,
        index: ShardIndex,
        term: TermNumber,
        outcome: Outcome,
        unanswered: bool,
        now: Moment,
    ) {
        let shard = &mut self.shards[index];
        if shard.task != Some(term) {
            return;
        }
        let asked = shard.slot.state() != State::Running;
        shard.task = None;
        if shard.term_is_deaf(now) {
            shard.deaf_until = now + slot::pause(DEAF_PAUSE, shard.deaf_terms, DEAF_PAUSE_MOST);
            shard.deaf_terms += 1;
            self.shards.iter_mut().for_each(|shard| shard.doubtful = true);
        } else {
            shard.deaf_terms = 0;
        }
        let shard = &mut self.shards[index];
        shard.members.iter_mut().for_each(|member| member.deaf = None);
        // That a kind of a group has failed was said when it did.
        let broken = shard.broken.take();
        let first = shard.first_kind;
        self.show_hearing(index, now);
        let failure = match &outcome {
            _ if broken.is_some() => None,
            Outcome::Failed(why) => Some(format!("the reconciler failed: {why}")),
            Outcome::Panicked(why) => Some(format!("the reconciler panicked: {why}")),
            Outcome::Finished if !asked => Some("the reconciler ended although its term went on".to_owned()),
            Outcome::Finished | Outcome::Aborted => None,
        };
        self.shut(index, term);
        match failure {
            Some(why) => {
                self.fail(index, first, why);
                self.ask_about(index);
            }
            None if broken.is_some() => self.ask_about(index),
            None => self.shards[index].failure = None,
        }
        let outcome = broken.map_or(outcome, Outcome::Failed);
        self.tell(index, slot::Event::Ended { term, outcome, unanswered }, now);
    }

    pub(super) fn fail(&mut self, index: ShardIndex, kind: KindIndex, why: String) {
        self.shards[index].failure = Some(why.clone());
        self.note(Notice::Failed(kind, why));
    }

    pub(super) fn on_verdict(&mut self, kind: KindIndex, verdict: Verdict, now: Moment) {
        let Some(index) = self.shard_of(kind) else { return };
        let Some(member) = self.shards[index].member(kind) else { return };
        if matches!(verdict, Verdict::Unknown(_)) && !matches!(member.verdict, Verdict::Unknown(_)) {
            // What was known stays true until the API server says otherwise.
            return;
        }
        member.asked = true;
        if verdict != member.verdict {
            member.verdict = verdict.clone();
            self.note(Notice::Judged(kind, verdict));
        }
        self.judge(index, now);
    }

    pub(super) fn judge(&mut self, index: ShardIndex, now: Moment) {
        let shard = &self.shards[index];
        let heard = self.heard_for(index, self.setup.timings.renew_deadline).is_none_or(|until| now < until);
        let runnable = shard.is_served() && shard.rival.is_none() && heard;
        self.tell(index, slot::Event::Runnable(runnable), now);
    }

    /// Until when our membership tells replicas with a Lease that we lead the kind by a ConfigMap, if it is to count for so long
    /// since it was written; `None` if the lock tells by itself.
    fn heard_for(&self, index: ShardIndex, long: Duration) -> Option<Moment> {
        let by_config_map = self.shards[index].spec.lock == LockKind::ConfigMap;
        by_config_map.then(|| self.membership.heard_at().map_or(Moment::default(), |heard_at| heard_at + long))
    }

    pub(super) fn on_deaths(&mut self, deaths: Deaths) {
        // A container that runs again takes its Leases back itself; the others stand in line for them, as is due.
        self.stale |= self.roster.mark_dead(&deaths);
        self.deaths = deaths;
        self.shards.iter_mut().for_each(|shard| shard.stale = true);
    }

    /// Tells a slot what has happened, and does what it answers.
    pub(super) fn tell(&mut self, index: ShardIndex, event: slot::Event, now: Moment) {
        let shard = &mut self.shards[index];
        shard.stale = true;
        let command = shard.slot.on(event, now);
        match (command, shard.task) {
            (Some(Command::Start(grant)), _) => {
                let standby = shard.standby.take_if(|standby| standby.term == grant.term);
                shard.task = Some(grant.term);
                for member in shard.members.iter_mut().filter(|member| standby.is_some() && !member.standby_hears) {
                    member.deaf = Some((now, "its standby had no watch when the term began".to_owned()));
                    // It has been without one for a while already.
                    shard.doubtful = true;
                }
                let standby = standby.map(|standby| standby.prepared);
                self.dismiss(index);
                self.effects.push(Effect::Start { shard: index, grant, standby });
            }
            (Some(Command::Drain), Some(term)) => self.effects.push(Effect::Drain(index, term)),
            (Some(Command::Abort), Some(term)) => {
                self.shut(index, term);
                self.effects.push(Effect::Abort(index, term));
            }
            (Some(Command::CallOff), _) => {
                if let Handover::To { successor, .. } = std::mem::take(&mut shard.handover) {
                    let lease = shard.spec.lease.clone();
                    self.roster.miss(now, &lease, &successor);
                    self.stale = true;
                }
            }
            (Some(Command::Drain | Command::Abort), None) | (None, _) => {}
        }
    }

    /// Asks elections what to do, where something has changed or time has come. Whether there were any.
    pub(super) fn drive_all(&mut self, now: Moment) -> bool {
        let mut any = false;
        for index in 0..self.shards.len() {
            let shard = &mut self.shards[index];
            if std::mem::take(&mut shard.stale) || now >= shard.wake_at {
                any = true;
                self.drive(index, now);
                // What it did to itself is done.
                self.shards[index].stale = false;
            }
        }
        any
    }

    pub(super) fn drive(&mut self, index: ShardIndex, now: Moment) {
        self.tell(index, slot::Event::Tick, now);
        if self.shards[index].spec.lock == LockKind::ConfigMap {
            self.judge(index, now);
        }
        let mut wake = Moment::NEVER;
        for _ in 0..ROUNDS {
            self.mark_dead(index, now);
            let sees = self.blind.is_none();
            let shard = &mut self.shards[index];
            let sees = if shard.spec.lock == LockKind::Lease { sees } else { shard.lock_seen };
            shard.election.set_watched(sees && (shard.sighted.is_some() || !shard.election.exists()));
            shard.election.expire(now);
            self.follow_standing(index, now);
            self.show_hearing(index, now);
            self.stand_by_or_not(index, now);
            let courtesy = self.roster.courtesy(now, &self.shards[index].spec.lease);
            let shard = &mut self.shards[index];
            let intent = shard.intent(now, courtesy);
            shard.election.intend(intent);
            if shard.in_flight.is_some() {
                break;
            }
            match shard.election.step(now) {
                Step::Wait(at) => {
                    wake = at;
                    break;
                }
                Step::Read => {
                    let request = Request::Get { lease: shard.spec.lease.clone() };
                    self.ask(index, None, request, now);
                }
                Step::Write(proposal) => self.write(index, &proposal, now),
            }
        }
        let timings = self.setup.timings;
        let heard =
            [timings.renew_deadline, election::validity(&self.setup.timings)].map(|long| self.heard_for(index, long));
        let heard = heard.into_iter().flatten().filter(|until| *until > now).min().unwrap_or(Moment::NEVER);
        let shard = &mut self.shards[index];
        let confirm = shard.unconfirmed.as_ref().filter(|it| it.listing.is_none());
        // A term that is being lost, or given back to a rival, is not confirmed any more.
        let leads = matches!(shard.election.standing(now), Standing::Leading(_)) && shard.rival.is_none();
        let confirm = confirm.filter(|_| leads);
        let confirm = confirm.map_or(Moment::NEVER, |unconfirmed| unconfirmed.list_at);
        let deaf = shard.deaf_change(now);
        let slot = shard.slot.next_wake(now);
        shard.wake_at = wake.min(shard.election.next_change(now)).min(slot).min(confirm).min(deaf).min(heard);
    }

    /// A holder that is proven dead need not be waited for: by the kubelet's word, or because it was in our Pod before us.
    pub(super) fn mark_dead(&mut self, index: ShardIndex, now: Moment) {
        let shard = &mut self.shards[index];
        let Some(holder) = shard.election.holder().filter(|holder| *holder != self.setup.identity) else { return };
        let of_holder = [&shard.sighted, &shard.answered].into_iter().flatten();
        let of_holder = of_holder.filter(|record| record.holder.as_deref() == Some(holder));
        let pods: Vec<_> = of_holder.filter_map(|record| record.holder_pod.as_deref()).collect();
        let before_us = self.setup.pod_uid.as_deref().is_some_and(|ours| pods.contains(&ours));
        if before_us || self.deaths.prove(holder, pods.first().copied()) {
            let holder = holder.to_owned();
            shard.election.mark_dead(now, &holder);
        }
    }

    /// Has the fence and the slot follow where the election stands.
    pub(super) fn follow_standing(&mut self, index: ShardIndex, now: Moment) {
        let mut standing = self.shards[index].election.standing(now);
        // The membership is a part of this lock: a replica with a Lease waits for us no longer than it hears of us.
        if let Some(until) = self.heard_for(index, election::validity(&self.setup.timings)) {
            match &mut standing {
                Standing::Leading(grant) | Standing::Losing(grant) if now < until => {
                    grant.valid_until = grant.valid_until.min(until);
                }
                Standing::Leading(_) | Standing::Losing(_) if self.shards[index].task.is_some() => {
                    standing = Standing::Standby;
                }
                _ => {}
            }
        }
        let grant = match &standing {
            Standing::Leading(grant) | Standing::Losing(grant) => Some(grant.clone()),
            Standing::Standby => None,
        };
        let open = self.shards[index].fence.map(|(term, _)| term);
        if let Some(term) = open.filter(|term| grant.as_ref().is_none_or(|grant| grant.term != *term)) {
            self.shut(index, term);
        }
        self.note_loss(index);
        let Some(grant) = grant else {
            if let Some(unconfirmed) = self.shards[index].unconfirmed.take() {
                self.tell(index, slot::Event::NeverBegun(unconfirmed.term), now);
            }
            return self.tell(index, slot::Event::Standing(Standing::Standby), now);
        };
        let losing = matches!(standing, Standing::Losing(_));
        if !losing && !self.confirm(index, grant.term, now) {
            return;
        }
        let shard = &mut self.shards[index];
        let confirmed = shard.is_confirmed(grant.term);
        // A term that has ended gets no fence again; nor does one that never begins.
        let begins = confirmed && grant.term > shard.shut && (shard.task.is_some() || shard.slot.can_run(now));
        if begins && shard.fence.is_none_or(|(_, until)| until < grant.valid_until) {
            shard.fence = Some((grant.term, grant.valid_until));
            self.effects.push(Effect::Extend(index, grant.term, grant.valid_until));
        }
        self.tell(index, slot::Event::Standing(standing), now);
    }

    pub(super) fn note_loss(&mut self, index: ShardIndex) {
        let shard = &mut self.shards[index];
        let working = shard.task.is_some();
        if let Some(loss) = shard.election.take_loss().filter(|_| working) {
            self.note(Notice::Lost(index, loss.clone()));
            self.exit_on_loss(index, &loss);
        }
    }

    /// Where a restart is the cleaning up, the process ends as soon as a term that works is lost: every fence is shut, and
    /// nothing else is done. A process that stops already goes on with that.
    fn exit_on_loss(&mut self, index: ShardIndex, loss: &Loss) {
        let shard = &self.shards[index];
        if self.setup.on_loss == OnLoss::Reelect || self.is_stopping() || self.ended || shard.task.is_none() {
            return;
        }
        let ending = Ending::Lost { lease: shard.spec.lease.clone(), loss: loss.clone() };
        // What was decided for other shards a moment ago is not begun any more.
        self.effects.retain(|effect| matches!(effect, Effect::Shut(..) | Effect::Note(_)));
        for index in 0..self.shards.len() {
            if let Some((term, _)) = self.shards[index].fence {
                self.shut(index, term);
            }
        }
        self.ended = true;
        self.effects.push(Effect::Exit(ending));
    }

    /// Whether the term may work: no other Lease of its kind was held when it was won.
    pub(super) fn confirm(&mut self, index: ShardIndex, term: TermNumber, now: Moment) -> bool {
        let shard = &mut self.shards[index];
        let Some(unconfirmed) = shard.unconfirmed.as_mut().filter(|it| it.term == term) else { return true };
        if shard.rival.is_some() {
            // The slot cannot run it, and gives it back.
            return true;
        }
        // Of the two sides the one that looks later sees the other: a kind with a ConfigMap is won when our membership is
        // written, and then the Leases are listed.
        let by_config_map = shard.spec.lock == LockKind::ConfigMap;
        if !by_config_map && self.rivals.has_seen(unconfirmed.version) {
            shard.won_at = unconfirmed.version;
            shard.unconfirmed = None;
            return true;
        }
        let due = by_config_map || self.blind.is_some() || now >= unconfirmed.list_at;
        if due && unconfirmed.listing.is_none() {
            let id = self.send(Subject::Confirmation(index), Request::List);
            if let Some(unconfirmed) = &mut self.shards[index].unconfirmed {
                unconfirmed.listing = Some(id);
            }
        }
        false
    }

    /// Begins or ends the standby, as it is wanted and possible now.
    pub(super) fn stand_by_or_not(&mut self, index: ShardIndex, now: Moment) {
        let shard = &mut self.shards[index];
        let possible = shard.keeps_cache && shard.slot.can_stand_by(now);
        let advised = if possible { shard.advice.cache } else { roster::Cache::None };
        let next = match shard.election.standing(now) {
            Standing::Leading(grant) | Standing::Losing(grant) => grant.term,
            Standing::Standby => shard.election.next_term(),
        };
        // A cache is of use to the term behind the same fence only.
        let of_use = |standby: &Standby| standby.term == next && next > shard.shut && advised != roster::Cache::None;
        match &shard.standby {
            Some(standby) if !of_use(standby) => self.dismiss(index),
            None if advised == roster::Cache::Kept && next == shard.election.next_term() && next > shard.shut => {
                shard.members.iter_mut().for_each(|member| member.standby_hears = true);
                shard.standby = Some(Standby { term: next, prepared: false });
                self.effects.push(Effect::StandBy(index, next));
            }
            _ => {}
        }
    }

    pub(super) fn dismiss(&mut self, index: ShardIndex) {
        if let Some(standby) = self.shards[index].standby.take() {
            self.effects.push(Effect::Dismiss(index, standby.term));
        }
    }

    pub(super) fn shut(&mut self, index: ShardIndex, term: TermNumber) {
        let shard = &mut self.shards[index];
        if shard.shut < term {
            shard.shut = term;
            shard.fence = None;
            self.effects.push(Effect::Shut(index, term));
        }
    }
}
