//! Every order of events, not a random one: two replicas, one kind, a small API server, and at most so many faults.
//!
//! What is in flight is delivered in any order before time goes on; a fault loses a message, holds one back for any time,
//! pauses a process for any time, or ends one, whose container begins a new process. Time goes on from one instant to the
//! next at which something is due. States are met by their hash, each is followed up once, the nearest first.
//! In every state: never two open fences, no release under running work, no replica that waits for the end of nothing.

#![expect(clippy::print_stdout, reason = "says how far it has come to the person who waits for it")]

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    rc::Rc,
    time::{Duration, Instant},
};

use leasehold::{
    config::{LockKind, OnLoss, Rebalance, StandbyMode, Timings},
    protocol::{
        event::{Answer, Effect, Event, Request, RequestId, TermNumber, Verdict, Watch},
        lease::{Record, Role},
        moment::Moment,
        replica::{Replica, Setup},
        roster::{Rules, ShardSpec},
        slot::Outcome,
    },
};

const TIMINGS: Timings = Timings {
    lease_duration: Duration::from_secs(4),
    renew_deadline: Duration::from_secs(2),
    retry_period: Duration::from_secs(1),
    request_timeout: Duration::from_millis(500),
};

/// How far time goes. A pause, an expiry, a take-over, and what a process that resumes does then.
const HORIZON: Duration = Duration::from_millis(7_000);
const BEGINNING: Moment = Moment::after_origin(Duration::from_secs(1_000));
const SHARD: usize = 0;

/// What can be delivered to a process, or has left it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Message {
    /// It does not keep time from going on.
    is_held: bool,
    what: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Request(RequestId, Request),
    /// One of a process that has ended.
    Left(Request),
    Answer(RequestId, Answer),
    Ends(TermNumber, bool),
}

#[derive(Clone, Debug, Hash)]
struct Host {
    replica: Replica,
    lives: u8,
    is_paused: bool,
    /// Until when each term may write; a fence that was shut is not there.
    fences: BTreeMap<TermNumber, Moment>,
    task: Option<TermNumber>,
    messages: Vec<Message>,
    /// What the watch has still to show, in its order, and whether that is held back.
    watch: VecDeque<Watch>,
    watch_is_held: bool,
    deadlines: BTreeMap<RequestId, Moment>,
}

#[derive(Clone, Debug, Default, Hash)]
struct Server {
    leases: BTreeMap<String, Record>,
    version: u64,
    uid: u64,
}

#[derive(Clone)]
struct State {
    now: Moment,
    server: Rc<Server>,
    hosts: [Rc<Host>; 2],
    faults: u8,
    /// Of the server and of the hosts: most steps change one of them.
    hashes: [u64; 3],
}

/// One step from a state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Deliver(usize, usize),
    Show(usize),
    Wake(usize),
    TimeOut(usize, RequestId),
    Resume(usize),
    TimePasses,
    // Faults.
    Lose(usize, usize),
    Hold(usize, usize),
    HoldWatch(usize),
    Pause(usize),
    Crash(usize),
}

fn setup(host: usize, lives: u8) -> Setup {
    Setup {
        identity: format!("pod{host}_{lives}"),
        pod: format!("pod{host}"),
        pod_uid: Some(format!("uid{host}")),
        namespace: "ns".to_owned(),
        instance: "sim".to_owned(),
        generation: "g".to_owned(),
        capacity: 1,
        timings: TIMINGS,
        rules: Rules {
            rebalance: Rebalance::Automatic,
            settle: Duration::from_secs(60),
            grace: Duration::from_millis(500),
            lease_duration: TIMINGS.lease_duration,
        },
        on_loss: OnLoss::Reelect,
        drain_timeout: Duration::from_secs(1),
        specs: vec![ShardSpec {
            lease: "a.example.com".to_owned(),
            lock: LockKind::Lease,
            kinds: vec!["A.example.com".to_owned()],
            weight: 1,
            standby: StandbyMode::None,
        }],
    }
}

impl State {
    fn beginning(faults: u8) -> Self {
        let host = |host| {
            Rc::new(Host {
                replica: Replica::new(setup(host, 0), BEGINNING).0,
                lives: 0,
                is_paused: false,
                fences: BTreeMap::new(),
                task: None,
                messages: Vec::new(),
                watch: VecDeque::new(),
                watch_is_held: false,
                deadlines: BTreeMap::new(),
            })
        };
        let hosts = [host(0), host(1)];
        let before = Self { now: BEGINNING, server: Rc::default(), hosts, faults, hashes: [0; 3] };
        let mut this = before.clone();
        for host in 0..2 {
            this.begin(host, 0).unwrap();
        }
        this.settle().unwrap();
        this.hash_anew(&before);
        this
    }

    /// A process starts there; its watch lists, and its kind can be run.
    fn begin(&mut self, host: usize, lives: u8) -> Result<(), String> {
        let (replica, effects) = Replica::new(setup(host, lives), self.now);
        let listed = self.server.leases.values().cloned().collect();
        let it = Rc::make_mut(&mut self.hosts[host]);
        let left = it.messages.drain(..).filter_map(|message| match message.what {
            Kind::Request(_, request) | Kind::Left(request) => {
                Some(Message { is_held: true, what: Kind::Left(request) })
            }
            Kind::Answer(..) | Kind::Ends(..) => None,
        });
        let messages = left.collect();
        *it = Host {
            replica,
            lives,
            is_paused: false,
            fences: BTreeMap::new(),
            task: None,
            messages,
            watch: VecDeque::new(),
            watch_is_held: false,
            deadlines: BTreeMap::new(),
        };
        self.carry_out(host, effects)?;
        self.tell(host, Event::Judged(SHARD, Verdict::Runnable))?;
        self.tell(host, Event::Watched(Watch::Listed(listed)))
    }

    fn tell(&mut self, host: usize, event: Event) -> Result<(), String> {
        let it = Rc::make_mut(&mut self.hosts[host]);
        let effects = it.replica.on(event, self.now);
        if !it.replica.shards()[SHARD].is_open(self.now) {
            return Err(format!("{host} waits for the end of a term that has not begun"));
        }
        self.carry_out(host, effects)
    }

    fn carry_out(&mut self, host: usize, effects: Vec<Effect>) -> Result<(), String> {
        // What follows at once follows after all that was decided before it.
        let mut follows = Vec::new();
        for effect in effects {
            let now = self.now;
            let it = Rc::make_mut(&mut self.hosts[host]);
            match effect {
                Effect::Send(id, request) if is_of_shard(&request) => {
                    it.deadlines.insert(id, now + TIMINGS.request_timeout);
                    it.messages.push(Message { is_held: false, what: Kind::Request(id, request) });
                }
                // What is said of memberships is answered at once: they decide nothing about safety.
                Effect::Send(id, request) => {
                    let answer = self.commit(host, request)?;
                    follows.push(Event::Answered(id, answer));
                }
                Effect::Extend(_, term, until) => {
                    it.fences.insert(term, until);
                    self.check_fences()?;
                }
                Effect::Shut(_, term) => drop(it.fences.remove(&term)),
                Effect::StandBy(shard, term) => follows.push(Event::StandbyPrepared(shard, term)),
                Effect::Start { grant, .. } => {
                    if it.task.replace(grant.term).is_some() {
                        return Err(format!("a term begins at {host} while the last one runs"));
                    }
                }
                Effect::Drain(_, term) => it.messages.push(Message { is_held: false, what: Kind::Ends(term, false) }),
                Effect::Abort(_, term) => it.messages.push(Message { is_held: false, what: Kind::Ends(term, true) }),
                Effect::Ask(shard) => follows.push(Event::Judged(shard, Verdict::Runnable)),
                Effect::Dismiss(..) | Effect::Note(_) | Effect::Exit(_) => {}
            }
        }
        follows.into_iter().try_for_each(|event| self.tell(host, event))
    }

    fn check_fences(&self) -> Result<(), String> {
        let is_open = |host: &Rc<Host>| host.fences.values().any(|until| self.now < *until);
        if self.hosts.iter().all(is_open) { Err("both may write".to_owned()) } else { Ok(()) }
    }

    /// The API server carries a request out, and both watches have something to show.
    fn commit(&mut self, host: usize, request: Request) -> Result<Answer, String> {
        let server = Rc::make_mut(&mut self.server);
        let current = |lease: &str| server.leases.get(lease).map(|record| record.version.clone());
        let (answer, shown) = match request {
            Request::Get { lease } => return Ok(Answer::Found(server.leases.get(&lease).cloned())),
            Request::List => {
                let ours = server.leases.values().filter(|record| record.role != Role::None);
                return Ok(Answer::Listed(ours.cloned().collect()));
            }
            Request::Create { record, .. } if current(&record.name).is_none() => {
                server.uid += 1;
                let uid = format!("u{}", server.uid);
                let stored = server.store(record, uid);
                (Answer::Stored(stored.clone()), Watch::Stored(stored))
            }
            Request::Update { record, .. } if current(&record.name).as_ref() == Some(&record.version) => {
                let is_its_own = record.holder.is_none() && held_by(server.leases.get(&record.name), &self.hosts[host]);
                if is_its_own && self.hosts[host].task.is_some() {
                    return Err(format!("{host} releases what it works on"));
                }
                let uid = record.version.uid.clone();
                let stored = server.store(record, uid);
                (Answer::Stored(stored.clone()), Watch::Stored(stored))
            }
            Request::Delete { lease, version, .. } if current(&lease).as_ref() == Some(&version) => {
                server.version += 1;
                let mut gone = server.leases.remove(&lease).unwrap_or_default();
                gone.version.resource_version = server.version.to_string();
                (Answer::Deleted, Watch::Deleted(gone))
            }
            Request::Create { .. } | Request::Update { .. } | Request::Delete { .. } => return Ok(Answer::Conflict),
        };
        for host in &mut self.hosts {
            Rc::make_mut(host).watch.push_back(shown.clone());
        }
        Ok(answer)
    }

    /// What can happen now.
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut must = false;
        for (host, it) in self.hosts.iter().enumerate() {
            let awake = !it.is_paused;
            for (index, message) in it.messages.iter().enumerate() {
                // What has left the process goes on without it.
                if awake || matches!(message.what, Kind::Request(..) | Kind::Left(..)) {
                    steps.push(Step::Deliver(host, index));
                    must |= !message.is_held;
                }
            }
            if !awake {
                steps.push(Step::Resume(host));
                continue;
            }
            if !it.watch.is_empty() {
                steps.push(Step::Show(host));
                must |= !it.watch_is_held;
            }
            if it.replica.next_wake() <= self.now {
                steps.push(Step::Wake(host));
                must = true;
            }
            let due = it.deadlines.iter().filter(|(_, deadline)| **deadline <= self.now);
            for (id, _) in due {
                steps.push(Step::TimeOut(host, *id));
                must = true;
            }
        }
        if !must {
            steps.push(Step::TimePasses);
        }
        if self.faults > 0 {
            self.add_faults(&mut steps);
        }
        steps
    }

    fn add_faults(&self, steps: &mut Vec<Step>) {
        for (host, it) in self.hosts.iter().enumerate() {
            for (index, message) in it.messages.iter().enumerate().filter(|(_, message)| !message.is_held) {
                steps.push(Step::Hold(host, index));
                if !matches!(message.what, Kind::Ends(..)) {
                    steps.push(Step::Lose(host, index));
                }
            }
            if !it.is_paused {
                steps.push(Step::Pause(host));
            }
            if !it.watch.is_empty() && !it.watch_is_held {
                steps.push(Step::HoldWatch(host));
            }
            steps.push(Step::Crash(host));
        }
    }

    /// When something is due next.
    fn next_instant(&self) -> Moment {
        let of = |host: &Rc<Host>| {
            let fences = host.fences.values().copied();
            let own = (!host.is_paused).then(|| host.replica.next_wake()).into_iter();
            let deadlines = host.deadlines.values().copied().filter(|_| !host.is_paused);
            fences.chain(own).chain(deadlines).filter(|at| *at > self.now).min().unwrap_or(Moment::NEVER)
        };
        self.hosts.iter().map(of).min().unwrap_or(Moment::NEVER)
    }

    fn take(&self, step: Step) -> Result<Self, String> {
        let mut next = self.clone();
        match step {
            Step::Deliver(host, index) => {
                let message = Rc::make_mut(&mut next.hosts[host]).messages.remove(index);
                next.deliver(host, message.what)?;
            }
            Step::Show(host) => {
                let it = Rc::make_mut(&mut next.hosts[host]);
                let shown = it.watch.pop_front();
                it.watch_is_held &= !it.watch.is_empty();
                if let Some(shown) = shown {
                    next.tell(host, Event::Watched(shown))?;
                }
            }
            Step::Wake(host) => {
                next.tell(host, Event::Woken)?;
                if next.hosts[host].replica.next_wake() <= next.now {
                    return Err(format!("{host} is due again at once"));
                }
            }
            Step::TimeOut(host, id) => {
                Rc::make_mut(&mut next.hosts[host]).deadlines.remove(&id);
                next.tell(host, Event::Answered(id, Answer::Unanswered("no answer in time".to_owned())))?;
            }
            Step::Resume(host) => Rc::make_mut(&mut next.hosts[host]).is_paused = false,
            Step::TimePasses => {
                next.now = next.next_instant();
                // A fence that has closed by its time is as good as none.
                for host in &mut next.hosts {
                    if host.fences.values().any(|until| *until <= next.now) {
                        Rc::make_mut(host).fences.retain(|_, until| *until > next.now);
                    }
                }
            }
            Step::Lose(host, index) => {
                next.faults -= 1;
                Rc::make_mut(&mut next.hosts[host]).messages.remove(index);
            }
            Step::Hold(host, index) => {
                next.faults -= 1;
                Rc::make_mut(&mut next.hosts[host]).messages[index].is_held = true;
            }
            Step::HoldWatch(host) => {
                next.faults -= 1;
                Rc::make_mut(&mut next.hosts[host]).watch_is_held = true;
            }
            Step::Pause(host) => {
                next.faults -= 1;
                Rc::make_mut(&mut next.hosts[host]).is_paused = true;
            }
            Step::Crash(host) => {
                next.faults -= 1;
                let lives = next.hosts[host].lives + 1;
                next.begin(host, lives)?;
            }
        }
        next.settle()?;
        next.hash_anew(self);
        Ok(next)
    }

    fn deliver(&mut self, host: usize, what: Kind) -> Result<(), String> {
        match what {
            Kind::Request(id, request) => {
                let answer = self.commit(host, request)?;
                let it = Rc::make_mut(&mut self.hosts[host]);
                // One that was given up is carried out all the same.
                if it.deadlines.contains_key(&id) {
                    it.messages.push(Message { is_held: false, what: Kind::Answer(id, answer) });
                }
                Ok(())
            }
            Kind::Left(request) => self.commit(host, request).map(drop),
            Kind::Answer(id, answer) => match Rc::make_mut(&mut self.hosts[host]).deadlines.remove(&id) {
                Some(_) => self.tell(host, Event::Answered(id, answer)),
                None => Ok(()),
            },
            Kind::Ends(term, aborted) => {
                let it = Rc::make_mut(&mut self.hosts[host]);
                if it.task.take_if(|task| *task == term).is_none() {
                    return Ok(());
                }
                let outcome = if aborted { Outcome::Aborted } else { Outcome::Finished };
                self.tell(host, Event::TermEnded { shard: SHARD, term, outcome, unanswered: false })
            }
        }
    }

    /// What the watch shows of memberships is taken in at once, if nothing is before it.
    fn settle(&mut self) -> Result<(), String> {
        while let Some(host) = (0..2).find(|&host| self.hosts[host].shows_membership()) {
            if let Some(shown) = Rc::make_mut(&mut self.hosts[host]).watch.pop_front() {
                self.tell(host, Event::Watched(shown))?;
            }
        }
        Ok(())
    }

    fn hash_anew(&mut self, before: &Self) {
        if !Rc::ptr_eq(&self.server, &before.server) {
            self.hashes[0] = hash_of(&self.server);
        }
        for host in 0..2 {
            if !Rc::ptr_eq(&self.hosts[host], &before.hosts[host]) {
                self.hashes[host + 1] = hash_of(&self.hosts[host]);
            }
        }
    }

    /// A process that is the same in many states is kept once.
    fn share(&mut self, known: &mut HashMap<u64, Rc<Host>>) {
        for host in 0..2 {
            let shared = known.entry(self.hashes[host + 1]).or_insert_with(|| Rc::clone(&self.hosts[host]));
            self.hosts[host] = Rc::clone(shared);
        }
    }

    fn fingerprint(&self) -> (Moment, u8, [u64; 3]) {
        (self.now, self.faults, self.hashes)
    }
}

impl Host {
    fn shows_membership(&self) -> bool {
        let Some(Watch::Stored(record) | Watch::Deleted(record)) = self.watch.front() else { return false };
        record.role == Role::Replica && !self.is_paused && !self.watch_is_held
    }
}

fn hash_of(part: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    part.hash(&mut hasher);
    hasher.finish()
}

impl Server {
    fn store(&mut self, mut record: Record, uid: String) -> Record {
        self.version += 1;
        record.version.uid = uid;
        record.version.resource_version = self.version.to_string();
        self.leases.insert(record.name.clone(), record.clone());
        record
    }
}

/// The process that lives there now holds it.
fn held_by(record: Option<&Record>, host: &Host) -> bool {
    record.and_then(|record| record.holder.as_ref()) == Some(&host.replica.setup().identity)
}

fn is_of_shard(request: &Request) -> bool {
    match request {
        Request::Get { lease } | Request::Delete { lease, .. } => lease.ends_with("example.com"),
        Request::Create { record, .. } | Request::Update { record, .. } => record.role == Role::Shard,
        Request::List => true,
    }
}

/// What was explored.
struct Explored {
    states: usize,
    /// Steps from the beginning to the farthest state.
    depth: usize,
    /// Everything within the horizon was seen.
    is_complete: bool,
    /// How far time went, at the least, if it was not.
    reached: Duration,
}

/// Follows up every state within the horizon, the nearest first, and as many as that at the most.
fn explore(faults: u8, most: usize) -> Explored {
    let beginning = State::beginning(faults);
    let mut known = HashMap::new();
    let mut seen = HashSet::from([beginning.fingerprint()]);
    // By state: the one it was reached from, and how; and how many steps that took.
    let mut trace = vec![(0_usize, Step::TimePasses, 0_usize)];
    let mut queue = VecDeque::from([(beginning, 0_usize)]);
    let mut reached = Duration::ZERO;
    while let Some((state, index)) = queue.pop_front() {
        reached = reached.max(state.now.since(BEGINNING));
        for step in state.steps() {
            let mut next = match state.take(step) {
                Ok(next) => next,
                Err(what) => panic!("{what}\n{}", told(&trace, index, step, faults)),
            };
            if next.now.since(BEGINNING) > HORIZON || !seen.insert(next.fingerprint()) {
                continue;
            }
            next.share(&mut known);
            trace.push((index, step, trace[index].2 + 1));
            queue.push_back((next, trace.len() - 1));
        }
        if trace.len() >= most {
            let depth = trace[index].2;
            return Explored { states: trace.len(), depth, is_complete: false, reached };
        }
    }
    let depth = trace.iter().map(|(_, _, depth)| *depth).max().unwrap_or(0);
    Explored { states: trace.len(), depth, is_complete: true, reached }
}

/// The way to a state, as it is played again.
fn told(trace: &[(usize, Step, usize)], mut index: usize, last: Step, faults: u8) -> String {
    let mut steps = vec![last];
    while index > 0 {
        steps.push(trace[index].1);
        index = trace[index].0;
    }
    let mut text = String::new();
    let mut state = State::beginning(faults);
    for step in steps.into_iter().rev() {
        let doing = match step {
            Step::Deliver(host, message) | Step::Lose(host, message) | Step::Hold(host, message) => {
                format!("{:?}", state.hosts[host].messages[message].what)
            }
            Step::Show(host) => format!("{:?}", state.hosts[host].watch.front()),
            _ => String::new(),
        };
        text += &format!("{:?} {step:?} {doing}\n", state.now.since(BEGINNING));
        match state.take(step) {
            Ok(next) => state = next,
            Err(_) => break,
        }
    }
    text
}

fn explore_and_tell(faults: u8, most: usize) -> Explored {
    #[expect(clippy::disallowed_methods, reason = "says how long it took; decides nothing")]
    let started = Instant::now();
    let explored = explore(faults, most);
    let Explored { states, depth, is_complete, reached } = &explored;
    let whole = if *is_complete { "all there are" } else { "not all" };
    println!("{faults} faults: {states} states, {whole}, {depth} steps, {reached:?} far, in {:?}", started.elapsed());
    explored
}

#[test]
fn no_order_of_events_gives_two_writers() {
    assert!(explore_and_tell(0, usize::MAX).is_complete);
}

#[test]
fn no_fault_at_any_point_gives_two_writers() {
    explore_and_tell(1, 120_000);
}

#[test]
fn no_two_faults_at_any_two_points_give_two_writers() {
    explore_and_tell(2, 60_000);
}

/// The same, farther: as many states as `EXPLORE` says.
#[test]
fn soak_explore() {
    let Some(most) = std::env::var("EXPLORE").ok().and_then(|text| text.parse().ok()) else { return };
    for faults in 1..=3 {
        explore_and_tell(faults, most);
    }
}
