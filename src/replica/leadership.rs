//! The leader signal: what this replica leads, for the other tasks of the process.
//!
//! A [`Signal`] is about a kind, a group or the whole process. It wakes when that changes, and each look at it also reads
//! the fences of the terms it is about. So in every case it says "not leading" before another replica may lead:
//!
//! | what ends the term | in this order |
//! | --- | --- |
//! | a drain: handover, stop, renew deadline missed | the signal says no; the work drains behind an open fence; its task ends; the fence shuts; the Lease is released, or left to expire |
//! | another holder, the Lease deleted, an abort | the signal says no; the fence shuts; the task is aborted |
//! | validity runs out, also of a process that was paused | the fence shuts by the clock, and the signal says no from that moment on, whether any task runs or not; the task is aborted |
//! | the reconciler ends by itself | the signal says no; the fence shuts; the Lease is released |
//!
//! And when a term begins: the Lease is held and confirmed, the fence opens, the signal says yes, the work begins.
//!
//! The release waits for the reconciler and for writes on their way, and for no task that only watches: work that has to be
//! done before another replica begins belongs into the reconciler. A task that watches ends best between two writes: one
//! that is dropped on its way may still be carried out, so the Lease is not released but left to expire.
//!
//! What it does not promise: a task that has looked may be paused before it acts, so only a write through the term's
//! client is safe. The signal says nothing of what another replica does meanwhile. A wake-up may come late, and
//! a term that ended and another that began in between may be seen as one change.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use futures::future::select_all;
use tokio::sync::watch;

use super::{
    fence::Gate,
    term::{FencingToken, Term},
};

/// What a [`Signal`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Of<'a> {
    /// One kind, as `<Kind>.<group>`, or just the kind for the core group.
    Kind(&'a str),
    /// The kinds of a group: they share one Lease, and are led together or not at all.
    Group(&'a str),
    /// All kinds of this process. It leads as long as it leads at least one of them.
    Process,
}

impl<'a> From<&'a str> for Of<'a> {
    fn from(kind: &'a str) -> Self {
        Self::Kind(kind)
    }
}

/// What this replica led at one moment. A copy is not brought up to date; that its terms have ended is seen all the same.
#[derive(Clone, Default)]
pub struct Leadership {
    terms: BTreeMap<Arc<str>, Held>,
}

#[derive(Clone)]
struct Held {
    term: Term,
    gate: Gate,
}

impl Held {
    fn is_valid(&self) -> bool {
        self.gate.time_left().is_some()
    }
}

impl Leadership {
    /// Whether any of the kinds that this is about is led: its term is valid now and does not drain. Reads the clock.
    pub fn is_leading(&self) -> bool {
        self.valid().next().is_some()
    }

    /// The kinds that are led now.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.valid().map(|(kind, _)| kind)
    }

    /// The terms that are led now, by kind. The client of each is the one to write with.
    pub fn terms(&self) -> impl Iterator<Item = (&str, &Term)> {
        self.valid().map(|(kind, held)| (kind, &held.term))
    }

    /// The term, where there is one: of a kind, or of a group or a process under one Lease, whose kinds share it.
    pub fn term(&self) -> Option<&Term> {
        self.terms().next().map(|(_, term)| term)
    }

    /// Its fencing token.
    pub fn token(&self) -> Option<&FencingToken> {
        self.term().map(Term::token)
    }

    fn valid(&self) -> impl Iterator<Item = (&str, &Held)> {
        self.terms.iter().filter(|(_, held)| held.is_valid()).map(|(kind, held)| (&**kind, held))
    }

    /// Resolves when one of the terms has ended by its fence. Pending while there is none.
    async fn shut(&self) {
        let gates: Vec<_> = self.valid().map(|(_, held)| held.gate.clone()).collect();
        if gates.is_empty() {
            return std::future::pending().await;
        }
        select_all(gates.iter().map(|gate| Box::pin(gate.shut()))).await;
    }
}

/// The same terms, whether they are still valid or not.
impl PartialEq for Leadership {
    fn eq(&self, other: &Self) -> bool {
        let tokens = |this: &Self| -> Vec<_> {
            this.terms.iter().map(|(kind, held)| (Arc::clone(kind), held.term.token().clone())).collect()
        };
        tokens(self) == tokens(other)
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.terms().map(|(kind, term)| (kind, term.token().to_string()))).finish()
    }
}

/// Tells what this replica leads, as it changes. Clones are independent of each other. Every method is cancel safe.
#[derive(Clone, Debug)]
pub struct Signal {
    receiver: watch::Receiver<Leadership>,
}

impl Signal {
    /// What is led now.
    pub fn now(&self) -> Leadership {
        self.receiver.borrow().clone()
    }

    /// Whether anything is led now. Costs two reads of memory and one of the clock: cheap enough for each request.
    pub fn is_leading(&self) -> bool {
        self.receiver.borrow().is_leading()
    }

    /// Waits until this replica leads; at once if it does. `None`: the replica has ended, and will never lead.
    pub async fn leading(&mut self) -> Option<Leadership> {
        loop {
            let now = self.receiver.borrow_and_update().clone();
            if now.is_leading() {
                return Some(now);
            }
            self.receiver.changed().await.ok()?;
        }
    }

    /// Waits until this replica does not lead; at once if it does not. Resolves when the term's fence shuts at the latest,
    /// by a timer of the task that waits.
    pub async fn lost(&mut self) {
        loop {
            let now = self.receiver.borrow_and_update().clone();
            if !now.is_leading() {
                return;
            }
            tokio::select! {
                biased;
                changed = self.receiver.changed() => if changed.is_err() { return },
                () = now.shut() => {}
            }
        }
    }

    /// Waits until what is led is other than the last time that this handle told, by any of its methods that wait: also
    /// when one term has followed another. `None`: the replica has ended.
    pub async fn changed(&mut self) -> Option<Leadership> {
        self.receiver.changed().await.ok()?;
        Some(self.receiver.borrow_and_update().clone())
    }

    /// The channel itself, for whatever takes one. Its wake-ups do not come from the fences; [`Leadership::is_leading`] of
    /// what it shows reads them.
    pub fn into_receiver(self) -> watch::Receiver<Leadership> {
        self.receiver
    }
}

/// Where signals come from. Dropped with the replica, it says that nothing is led.
#[derive(Default)]
pub struct Leaderships {
    kinds: BTreeMap<Arc<str>, Channel>,
    groups: BTreeMap<String, (BTreeSet<Arc<str>>, Channel)>,
    process: Channel,
}

type Channel = watch::Sender<Leadership>;

impl Leaderships {
    /// Signals of these kinds, each with the group that it is in.
    pub fn new(kinds: impl IntoIterator<Item = (String, Option<String>)>) -> Self {
        let mut this = Self::default();
        for (kind, group) in kinds {
            let kind: Arc<str> = kind.into();
            if let Some(group) = group {
                this.groups.entry(group).or_default().0.insert(Arc::clone(&kind));
            }
            this.kinds.insert(kind, Channel::default());
        }
        this
    }

    /// The signal of a kind, a group or the process; `None` if that is not configured.
    pub fn subscribe(&self, of: Of<'_>) -> Option<Signal> {
        let channel = match of {
            Of::Kind(kind) => self.kinds.get(kind),
            Of::Group(group) => self.groups.get(group).map(|(_, channel)| channel),
            Of::Process => Some(&self.process),
        };
        channel.map(|channel| Signal { receiver: channel.subscribe() })
    }

    /// These kinds are led under these terms, or not any more: those of one Lease together.
    pub(super) fn set(&self, terms: &[(String, Option<(&Term, &Gate)>)]) {
        let known = terms.iter().filter_map(|(kind, term)| Some((self.kinds.get_key_value(kind.as_str())?, *term)));
        let known: Vec<_> = known.collect();
        let set = |leadership: &mut Leadership, kind: &Arc<str>, term: Option<(&Term, &Gate)>| {
            let token = |held: Option<Held>| held.map(|held| held.term.token().clone());
            let before = token(match term {
                Some((term, gate)) => {
                    leadership.terms.insert(Arc::clone(kind), Held { term: term.clone(), gate: gate.clone() })
                }
                None => leadership.terms.remove(kind),
            });
            before.as_ref() != term.map(|(term, _)| term.token())
        };
        // All of them, whatever the first has come to.
        let set_all = |leadership: &mut Leadership| {
            known.iter().fold(false, |changed, ((kind, _), term)| set(leadership, kind, *term) || changed)
        };
        // The widest last: a task that is told by it finds the others to agree.
        for ((kind, channel), term) in &known {
            channel.send_if_modified(|leadership| set(leadership, kind, *term));
        }
        for (members, channel) in self.groups.values() {
            if known.iter().any(|((kind, _), _)| members.contains(*kind)) {
                channel.send_if_modified(set_all);
            }
        }
        self.process.send_if_modified(set_all);
    }
}

impl Drop for Leaderships {
    fn drop(&mut self) {
        let groups = self.groups.values().map(|(_, channel)| channel);
        for channel in self.kinds.values().chain(groups).chain([&self.process]) {
            channel.send_if_modified(|leadership| !std::mem::take(&mut leadership.terms).is_empty());
        }
    }
}

impl fmt::Debug for Leaderships {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaderships").field("process", &self.process.borrow()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::{
        config::Kind,
        replica::{clock::Clock, fence::Fence},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn set(all: &Leaderships, kinds: &[&str], term: Option<(&Term, &Gate)>) {
        let terms: Vec<_> = kinds.iter().map(|kind| ((*kind).to_owned(), term)).collect();
        all.set(&terms);
    }

    fn leaderships() -> Leaderships {
        let pair = |kind: &str, group: Option<&str>| (kind.to_owned(), group.map(str::to_owned));
        Leaderships::new([pair("A.x", None), pair("B.x", Some("money")), pair("C.x", Some("money"))])
    }

    fn fence() -> Fence {
        Fence::new("a.x".to_owned(), None, Clock::tokio(), |_| ())
    }

    fn term(transitions: i32) -> Term {
        let kind = Kind::new("x", "v1", "A");
        let never = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::convert::Infallible>>()
        });
        let token = FencingToken { uid: "u".to_owned(), transitions };
        Term::new(
            Arc::new(kind),
            "me".to_owned(),
            token,
            kube::Client::new(never, "x"),
            Default::default(),
            Default::default(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn it_says_no_when_the_fence_shuts_by_the_clock_before_any_event_says_so() {
        let (all, fence, clock) = (leaderships(), fence(), Clock::tokio());
        let mut signal = all.subscribe("A.x".into()).unwrap();
        let watching = signal.clone();
        fence.extend(clock.now() + 5 * SECOND);
        set(&all, &["A.x"], Some((&term(1), &fence.gate())));
        assert_eq!(signal.leading().await.unwrap().token().unwrap().transitions, 1);
        let began = clock.now();
        let (lost, ()) = tokio::join!(
            async {
                signal.lost().await;
                clock.now().since(began)
            },
            async {
                sleep(4 * SECOND).await;
                fence.extend(began + 9 * SECOND);
                sleep(5 * SECOND - Duration::from_millis(1)).await;
                assert!(watching.is_leading());
                sleep(Duration::from_millis(1)).await;
                assert!(!watching.is_leading() && watching.now().terms().next().is_none());
            }
        );
        assert_eq!(lost, 9 * SECOND, "a renewal moves it on");
        assert!(signal.leading().now_or_never().is_none(), "what is over does not come back");
    }

    #[tokio::test(start_paused = true)]
    async fn it_says_no_at_once_when_the_fence_is_closed() {
        let (all, fence, clock) = (leaderships(), fence(), Clock::tokio());
        let mut signal = all.subscribe(Of::Process).unwrap();
        fence.extend(clock.now() + 5 * SECOND);
        set(&all, &["A.x"], Some((&term(1), &fence.gate())));
        let led = signal.leading().await.unwrap();
        drop(fence);
        assert!(!signal.is_leading() && !led.is_leading(), "a copy sees it too");
        signal.lost().now_or_never().expect("at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_and_the_process_hold_what_they_are_about() {
        let (all, fence, other, clock) = (leaderships(), fence(), fence(), Clock::tokio());
        let of = |of| all.subscribe(of).unwrap();
        let (a, b) = (of(Of::Kind("A.x")), of(Of::Kind("B.x")));
        let (money, process) = (of(Of::Group("money")), of(Of::Process));
        assert!(all.subscribe(Of::Kind("D.x")).is_none() && all.subscribe(Of::Group("x")).is_none());
        for fence in [&fence, &other] {
            fence.extend(clock.now() + 5 * SECOND);
        }
        set(&all, &["A.x"], Some((&term(1), &fence.gate())));
        assert_eq!(
            (a.is_leading(), b.is_leading(), money.is_leading(), process.is_leading()),
            (true, false, false, true)
        );
        set(&all, &["B.x", "C.x"], Some((&term(2), &other.gate())));
        assert_eq!(money.now().kinds().collect::<Vec<_>>(), ["B.x", "C.x"]);
        assert_eq!(b.now().kinds().collect::<Vec<_>>(), ["B.x"]);
        assert_eq!(process.now().kinds().collect::<Vec<_>>(), ["A.x", "B.x", "C.x"]);
        set(&all, &["A.x"], None);
        assert_eq!((a.is_leading(), process.is_leading()), (false, true), "it leads as long as it leads one");
        set(&all, &["B.x", "C.x"], None);
        assert!(!money.is_leading() && !process.is_leading());
    }

    #[tokio::test(start_paused = true)]
    async fn each_change_wakes_once_and_one_that_is_none_does_not() {
        let (all, fence, clock) = (leaderships(), fence(), Clock::tokio());
        fence.extend(clock.now() + 5 * SECOND);
        let mut signal = all.subscribe("A.x".into()).unwrap();
        for (transitions, news) in [(Some(1), true), (Some(1), false), (Some(2), true), (None, true), (None, false)] {
            let (term, gate) = (transitions.map(term), fence.gate());
            set(&all, &["A.x"], term.as_ref().map(|term| (term, &gate)));
            let told = signal.changed().now_or_never().flatten();
            assert_eq!(told.is_some(), news, "{transitions:?}");
        }
        let (mut b, mut money) = (all.subscribe("B.x".into()).unwrap(), all.subscribe(Of::Group("money")).unwrap());
        for (transitions, news) in [(1, true), (1, false), (2, true)] {
            set(&all, &["B.x", "C.x"], Some((&term(transitions), &fence.gate())));
            for signal in [&mut b, &mut money] {
                assert_eq!(signal.changed().now_or_never().is_some(), news, "{transitions}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_replica_ends_every_wait() {
        let (all, fence, clock) = (leaderships(), fence(), Clock::tokio());
        fence.extend(clock.now() + 60 * SECOND);
        let mut led = all.subscribe("A.x".into()).unwrap();
        let mut free = all.subscribe("B.x".into()).unwrap();
        set(&all, &["A.x"], Some((&term(1), &fence.gate())));
        let end = async {
            sleep(SECOND).await;
            drop(all);
        };
        let waits = async { tokio::join!(led.lost(), free.leading(), end) };
        let ((), never, ()) = timeout(2 * SECOND, waits).await.expect("it ends");
        assert!(never.is_none() && !led.is_leading());
    }
}
