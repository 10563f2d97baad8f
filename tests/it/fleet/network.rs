//! Between the processes and the API server: requests that take time, are lost, refused, or carried out without an
//! answer; and watches that lag, break, or fall silent.

use std::ops::Range;

use leasehold::protocol::{
    event::{Answer, Event, Request, RequestId, Watch},
    lease::{Purpose, Record, Role},
};

use super::{
    server::{Commit, Shown, key_of, read},
    world::{What, World},
};
use crate::timeline::{Global, MILLI, SECOND};

/// The product's connection counts as dead when it was silent for so long.
pub(super) const SILENCE_NOTICED: Global = 19 * SECOND;

/// What is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Refused {
    #[default]
    Acquisitions,
    Everything,
}

/// What is wrong around one process, and until when.
#[derive(Clone, Debug, Default)]
pub(super) struct Weather {
    /// Nothing gets through.
    pub(super) cut_until: Global,
    /// Every request takes a second and a half.
    pub(super) slow_until: Global,
    /// The watch lags by so much.
    pub(super) lag_until: Global,
    pub(super) lag: Range<Global>,
    /// The watch shows nothing and does not fail.
    pub(super) silent_until: Global,
    /// A list comes through meanwhile, and then the watch is silent again.
    pub(super) silent_after_lists: bool,
    /// The watch fails, and cannot be made anew.
    pub(super) down_until: Global,
    pub(super) refused_until: Global,
    pub(super) refused: Refused,
    /// Terms do not hear of their objects.
    pub(super) deaf_until: Global,
    /// No cache is filled.
    pub(super) unprepared_until: Global,
    /// The process is paused for half a second of every two.
    pub(super) stutters_until: Global,
}

/// The watch of a process.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Counts the watches; what an older one showed does not arrive any more.
    pub(super) number: u64,
    pub(super) is_up: bool,
    /// When the last thing arrives: a watch keeps its order.
    shown_at: Global,
}

impl World {
    // Requests.

    pub(super) fn send(&mut self, host: usize, id: RequestId, request: Request) {
        let now = self.now();
        let it = &mut self.hosts[host];
        let known = it.waits.insert(id, it.decided_at);
        let deadline = now + it.clock.global(it.template.timings.request_timeout);
        let weather = it.weather.clone();
        self.demand(known.is_none(), || format!("request {id} was sent twice"));
        let (mut delay, mut answered) = (self.rng.u64(1..20) * MILLI, true);
        if now < weather.slow_until {
            delay = 1_500 * MILLI;
        }
        if now < weather.cut_until {
            // Most are lost, some land late without an answer.
            if self.flip(200) {
                self.count("request lost");
                return self.at(deadline, What::TimesOut { host, id });
            }
            (delay, answered) = (self.rng.u64(0..8_000) * MILLI, false);
        } else if self.trouble.requests && self.flip(20) {
            (delay, answered) = (self.rng.u64(0..5_000) * MILLI, self.flip(128));
            self.count("request late");
        }
        if !answered || now + delay > deadline {
            self.at(deadline, What::TimesOut { host, id });
        }
        self.at(now + delay, What::Arrives { host, id, request: Box::new(request), deadline, answered });
    }

    pub(super) fn arrive(&mut self, host: usize, id: RequestId, request: Request, deadline: Global, answered: bool) {
        let now = self.now();
        let answer = match self.refusal(host, &request) {
            Some(answer) => {
                self.count("request refused");
                answer
            }
            None => self.commit(host, id, request),
        };
        if !answered {
            self.count("request unanswered");
            return;
        }
        let late = if self.trouble.requests && self.flip(10) { 4_000 } else { 20 };
        let at = (now + self.rng.u64(1..late) * MILLI).max(self.hosts[host].weather.cut_until);
        if at > deadline && now <= deadline {
            self.at(deadline, What::TimesOut { host, id });
        }
        self.at(at, What::Answers { host, id, answer: Box::new(answer) });
    }

    fn commit(&mut self, host: usize, id: RequestId, request: Request) -> Answer {
        let decided_at = self.hosts[host].waits.get(&id).copied();
        let (answer, commit) = {
            let namespace = self.hosts[host].template.namespace().to_owned();
            self.server.carry_out(self.time.now, &namespace, request.clone())
        };
        if let Some(commit) = commit {
            self.check_commit(host, decided_at, &request, &commit);
            self.show(&commit);
        }
        answer
    }

    /// The API server refuses it, or fails before it has done anything.
    fn refusal(&mut self, host: usize, request: &Request) -> Option<Answer> {
        let weather = &self.hosts[host].weather;
        if self.time.now < weather.refused_until {
            let acquires = matches!(request,
                Request::Create { record, purpose } | Request::Update { record, purpose }
                    if record.role == Role::Shard && matches!(purpose, Purpose::Create | Purpose::Acquire));
            if weather.refused == Refused::Everything || acquires {
                return Some(Answer::Refused("403: a policy forbids it".to_owned()));
            }
        }
        if !self.trouble.requests || !self.flip(6) {
            return None;
        }
        let reads = matches!(request, Request::Get { .. } | Request::List);
        Some(match self.rng.u8(0..7) {
            0 => Answer::Refused("401: Unauthorized".to_owned()),
            1 => Answer::Refused("403: Forbidden".to_owned()),
            2 if !reads => Answer::Refused("404: the namespace is not there".to_owned()),
            3 if !reads => Answer::Refused("422: Invalid".to_owned()),
            4 if !reads => Answer::Conflict,
            5 => Answer::Refused("429: Too many requests".to_owned()),
            _ => Answer::Unanswered("500: Internal error".to_owned()),
        })
    }

    /// The answer is there; the process may have given up on it.
    pub(super) fn answer(&mut self, host: usize, id: RequestId, answer: Answer) {
        if self.hosts[host].waits.remove(&id).is_some() {
            match &answer {
                Answer::Found(Some(record)) | Answer::Stored(record) => {
                    self.hosts[host].knows.insert(key_of(record), term_of(record));
                }
                _ => {}
            }
            self.deliver(host, Event::Answered(id, answer));
        }
    }

    pub(super) fn time_out(&mut self, host: usize, id: RequestId) {
        let it = &mut self.hosts[host];
        if self.time.now < it.paused_until {
            // An answer that has come meanwhile is taken first, however old it is.
            let at = it.paused_until;
            return self.at(at, What::TimesOut { host, id });
        }
        if it.waits.remove(&id).is_some() {
            self.deliver(host, Event::Answered(id, Answer::Unanswered("no answer in time".to_owned())));
        }
    }

    // Watches.

    /// Watches lag, and keep their order.
    pub(super) fn show(&mut self, commit: &Commit) {
        let Some(shown) = self.server.shown(commit) else { return };
        let now = self.now();
        for host in 0..self.hosts.len() {
            if !self.hosts[host].alive || !self.hosts[host].line.is_up {
                continue;
            }
            let weather = &self.hosts[host].weather;
            let lags = if now < weather.lag_until { Some(weather.lag.clone()) } else { self.lag() };
            let lag = match lags {
                Some(range) => self.rng.u64(range),
                None => self.rng.u64(1..15) * MILLI,
            };
            let again = self.trouble.watches && self.flip(8);
            let it = &mut self.hosts[host];
            let at = (now + lag).max(it.weather.cut_until).max(it.weather.silent_until).max(it.line.shown_at);
            if at == Global::MAX {
                continue;
            }
            it.line.shown_at = at;
            let number = it.line.number;
            for _ in 0..=u8::from(again) {
                self.at(at, What::Shows { host, number, shown: shown.clone() });
            }
        }
    }

    pub(super) fn shows(&mut self, host: usize, number: u64, shown: Shown) {
        let it = &mut self.hosts[host];
        if it.line.number != number || !it.alive {
            return;
        }
        let watch = match shown {
            Shown::Listed(records) => {
                it.knows.extend(records.iter().map(|record| (key_of(record), term_of(record))));
                Watch::Listed(records.iter().map(read).collect())
            }
            Shown::Stored(record) => {
                it.knows.insert(key_of(&record), term_of(&record));
                Watch::Stored(read(&record))
            }
            Shown::Deleted(record) => Watch::Deleted(read(&record)),
        };
        self.deliver(host, Event::Watched(watch));
    }

    /// The watch fails, and is made anew after a while.
    pub(super) fn fail_watch(&mut self, host: usize) {
        self.count("watch failed");
        let line = &mut self.hosts[host].line;
        line.number += 1;
        line.is_up = false;
        let number = line.number;
        self.list_later(host, number);
        self.deliver(host, Event::Watched(Watch::Failed("the connection is dead".to_owned())));
    }

    fn list_later(&mut self, host: usize, number: u64) {
        let wait = self.rng.u64(500..1_500) * MILLI;
        self.at(self.time.now + wait, What::Lists { host, number });
    }

    pub(super) fn list(&mut self, host: usize, number: u64) {
        let now = self.now();
        let it = &self.hosts[host];
        if it.line.number != number || !it.alive {
            return;
        }
        let weather = &it.weather;
        let silent = now < weather.silent_until;
        if now < weather.cut_until.max(weather.down_until) || (silent && !weather.silent_after_lists) {
            if self.flip(128) {
                self.deliver(host, Event::Watched(Watch::Failed("the list has failed".to_owned())));
            }
            return self.list_later(host, number);
        }
        let mut took = self.rng.u64(5..50) * MILLI;
        if now < self.hosts[host].weather.lag_until {
            let range = self.hosts[host].weather.lag.clone();
            took += self.rng.u64(range);
        }
        let shown = Shown::Listed(self.server.listed());
        let line = &mut self.hosts[host].line;
        line.is_up = true;
        line.shown_at = now + took;
        self.at(now + took, What::Shows { host, number, shown });
        if silent {
            self.at(now + SILENCE_NOTICED, What::Breaks { host, number });
        }
    }

    /// From now on, and without a word, the watch shows nothing.
    pub(super) fn silence(&mut self, host: usize, until: Global, noticed_after: Global) {
        let weather = &mut self.hosts[host].weather;
        weather.silent_until = weather.silent_until.max(until);
        if self.time.now.saturating_add(noticed_after) < until {
            let number = self.hosts[host].line.number;
            self.at(self.time.now + noticed_after, What::Breaks { host, number });
        }
    }
}

/// Names a term of a Lease.
pub(super) fn term_of(record: &Record) -> (String, i32) {
    (record.version.uid.clone(), record.transitions)
}
