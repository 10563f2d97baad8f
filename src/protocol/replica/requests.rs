//! Requests for Leases, and what their answers mean.

use super::{CONFIRM, Replica, Setup, Subject};
use crate::config::LockKind;
use crate::protocol::{
    election::{Proposal, RELEASED, Standing},
    event::{Answer, Effect, Garbage, Notice, Request, RequestId, ShardIndex},
    lease::{Purpose, Record, Role, Version},
    membership,
    moment::Moment,
    shard::{InFlight, Unconfirmed},
    slot,
};

impl Replica {
    // Requests.

    pub(super) fn send(&mut self, subject: Subject, request: Request) -> RequestId {
        self.next_request += 1;
        self.requests.insert(self.next_request, subject);
        self.effects.push(Effect::Send(self.next_request, request));
        self.next_request
    }

    pub(super) fn on_answer(&mut self, id: RequestId, answer: Answer, now: Moment) {
        match self.requests.remove(&id) {
            Some(Subject::Shard(index)) => self.on_lease_answer(index, answer, now),
            Some(Subject::Confirmation(index)) => self.on_confirmation(index, answer, now),
            Some(Subject::Membership) => {
                let before = self.membership.trouble().map(str::to_owned);
                self.membership.answered(now, answer);
                self.shards.iter_mut().for_each(|shard| shard.stale |= shard.spec.lock == LockKind::ConfigMap);
                let trouble = self.membership.trouble().map(str::to_owned);
                if trouble != before {
                    self.note(Notice::Unpublished(trouble));
                }
            }
            // It was answered already, or not in time.
            Some(Subject::Garbage) | None => {}
        }
    }

    pub(super) fn on_lease_answer(&mut self, index: ShardIndex, answer: Answer, now: Moment) {
        let shard = &mut self.shards[index];
        let Some(sent) = shard.in_flight.take() else { return };
        shard.stale = true;
        let trouble = match &answer {
            Answer::Refused(why) | Answer::Unanswered(why) => Some(why.clone()),
            _ => None,
        };
        let (terms, election) = (shard.election.next_term(), &mut shard.election);
        match (answer, sent.purpose) {
            (Answer::Found(record), _) => {
                let observation = record.as_ref().map(Record::observation);
                shard.answered = record;
                election.read(now, observation);
            }
            (Answer::Stored(record), _) => {
                let observation = record.observation();
                let version = record.version.number();
                shard.answered = Some(record);
                election.written(now, observation);
                if election.next_term() > terms {
                    let unconfirmed = Unconfirmed { term: terms, version, list_at: now + CONFIRM, listing: None };
                    shard.unconfirmed = Some(unconfirmed);
                }
                self.note_written(index, &sent, now);
            }
            (Answer::Deleted, _) => election.deleted(now),
            (Answer::Refused(_), Some(purpose)) => {
                election.refused(now);
                if matches!(purpose, Purpose::Create | Purpose::Acquire) {
                    self.tell(index, slot::Event::Refused, now);
                }
            }
            (Answer::Conflict | Answer::Listed(_), Some(_)) => election.conflicted(now),
            (Answer::Unanswered(_), Some(_)) => election.unknown(now),
            (Answer::Conflict | Answer::Listed(_) | Answer::Refused(_) | Answer::Unanswered(_), None) => {
                election.read_failed(now);
            }
        }
        if self.shards[index].trouble != trouble {
            self.shards[index].trouble.clone_from(&trouble);
            self.note(Notice::Trouble(index, trouble));
        }
    }

    pub(super) fn note_written(&mut self, index: ShardIndex, sent: &InFlight, now: Moment) {
        let notice = match sent.purpose {
            Some(Purpose::Renew) => Notice::Renewed(index, now.since(sent.sent_at)),
            Some(Purpose::Create | Purpose::Acquire) => Notice::Acquired {
                shard: index,
                from: sent.from.clone(),
                how: sent.freed,
                free_for: sent.idle_since.map(|since| now.since(since)),
            },
            _ => return,
        };
        self.note(notice);
    }

    pub(super) fn on_confirmation(&mut self, index: ShardIndex, answer: Answer, now: Moment) {
        let shard = &mut self.shards[index];
        shard.stale = true;
        let Some(unconfirmed) = &mut shard.unconfirmed else { return };
        let Answer::Listed(records) = answer else {
            unconfirmed.listing = None;
            unconfirmed.list_at = now + self.setup.timings.request_timeout / 2;
            return;
        };
        self.rivals.listed(now, &records, false);
        // Who leads by a ConfigMap says so on its membership.
        let members: Vec<_> = records.iter().filter_map(|record| self.member_of(record)).collect();
        for member in members.into_iter().filter(|member| !member.profile.config_maps.is_empty()) {
            self.stale |= self.roster.member(now, member);
        }
        let rival = self.rivals.of(now, &self.shards[index].spec.kinds, None, &self.deaths);
        let rival = rival.or_else(|| self.rival_by_config_map(index, now));
        let shard = &mut self.shards[index];
        // A term that was lost before this answer stays unconfirmed, so that its slot learns that it never began.
        if rival.is_none() && matches!(shard.election.standing(now), Standing::Leading(_)) {
            shard.won_at = shard.unconfirmed.take().and_then(|unconfirmed| unconfirmed.version);
        } else if let Some(unconfirmed) = &mut shard.unconfirmed {
            unconfirmed.listing = None;
        }
    }

    pub(super) fn ask(&mut self, index: ShardIndex, purpose: Option<Purpose>, request: Request, now: Moment) {
        let id = self.send(Subject::Shard(index), request);
        let shard = &mut self.shards[index];
        let from = shard.election.holder().filter(|holder| *holder != self.setup.identity).map(str::to_owned);
        let (freed, idle_since) = (shard.election.freed(), shard.election.idle_since(now));
        shard.in_flight = Some(InFlight { id, purpose, sent_at: now, from, freed, idle_since });
    }

    /// Changes what we own on the stored Lease, and leaves all else as it is (rule 13).
    pub(super) fn write(&mut self, index: ShardIndex, proposal: &Proposal, now: Moment) {
        let Setup { identity, pod, pod_uid, namespace, instance, timings, .. } = &self.setup;
        let shard = &self.shards[index];
        let stored = proposal.basis.as_ref().map(|basis| shard.at_version(basis).cloned());
        let Some(stored) = stored.unwrap_or_else(|| Some(Record::default())) else {
            // The object decided on is no longer at hand: a read brings it back.
            return self.shards[index].election.conflicted(now);
        };
        let purpose = proposal.purpose;
        let lease = shard.spec.lease.clone();
        let request = if purpose == Purpose::Replace {
            Request::Delete { lease, version: stored.version, purpose: Some(purpose) }
        } else {
            let release = purpose == Purpose::Release;
            let takes_over = matches!(purpose, Purpose::Create | Purpose::Acquire);
            // It was asked of a replica that has not taken it: the new holder says so by taking the annotation off.
            let wanted = stored.wanted.filter(|wanted| !takes_over || [identity, pod].contains(&wanted));
            let record = Record {
                namespace: namespace.clone(),
                name: lease,
                version: stored.version,
                created: stored.created,
                instance: Some(instance.clone()),
                role: Role::Shard,
                holder: (!release).then(|| identity.clone()),
                duration: Some(if release { RELEASED } else { timings.lease_duration }),
                transitions: proposal.transitions,
                holder_pod: pod_uid.clone().filter(|_| !release),
                successor: proposal.successor.clone(),
                wanted,
                weight: Some(shard.spec.weight),
                kinds: shard.spec.kinds.clone(),
                profile: None,
                odd: Vec::new(),
            };
            match purpose {
                Purpose::Create => Request::Create { record, purpose },
                _ => Request::Update { record, purpose },
            }
        };
        self.ask(index, Some(purpose), request, now);
    }

    pub(super) fn collect(&mut self, lease: String, version: Version, why: Garbage) {
        self.note(Notice::Collected(lease.clone(), why));
        self.send(Subject::Garbage, Request::Delete { lease, version, purpose: None });
    }

    pub(super) fn publish(&mut self, now: Moment) {
        if self.blind.is_none() {
            self.membership.begin(now);
        }
        if let membership::Step::Send(request) = self.membership.step(now) {
            self.send(Subject::Membership, request);
        }
    }
}
