//! Tests of what a replica does from standing by to the end of its first sweep.
#![expect(clippy::disallowed_methods, reason = "the clock under test")]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Either, join, pending, ready, select},
    stream,
};
use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::{
    pin,
    sync::{Mutex as AsyncMutex, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::controller::{Controller, Lane, RequeueAfter};
use crate::{
    reconcile::{
        fake::{Answer, Asked, Fake},
        name::Name,
    },
    replica::term::{Standby, Term},
};

const MANY: usize = 10_000;
const FLOOD: usize = 10_000;
const MILLISECOND: Duration = Duration::from_millis(1);

/// ConfigMaps as an API server has them, by name. Of other kinds it has none.
struct Cluster {
    objects: Mutex<BTreeMap<String, Value>>,
    changes: mpsc::UnboundedSender<Value>,
    told: AsyncMutex<mpsc::UnboundedReceiver<Value>>,
    /// Lists are answered from then on: of ConfigMaps, and of others.
    lists: [CancellationToken; 2],
    /// Objects a page.
    page: usize,
}

impl Cluster {
    fn of(names: impl IntoIterator<Item = String>) -> Arc<Self> {
        Arc::new(Self::paged(names, usize::MAX))
    }

    fn paged(names: impl IntoIterator<Item = String>, page: usize) -> Self {
        let objects = names.into_iter().map(|name| (name.clone(), object(&name, 1, 1))).collect();
        let (changes, told) = mpsc::unbounded_channel();
        let cluster = Self {
            objects: Mutex::new(objects),
            changes,
            told: AsyncMutex::new(told),
            lists: [CancellationToken::new(), CancellationToken::new()],
            page,
        };
        cluster.lists.iter().for_each(CancellationToken::cancel);
        cluster
    }

    async fn answer(self: Arc<Self>, asked: Asked) -> Answer {
        let others = usize::from(!asked.uri.contains("/configmaps"));
        if asked.uri.contains("watch=true") {
            if others == 1 {
                return None;
            }
            let event = self.told.lock().await.recv().await.unwrap();
            return Some((200, json!([event])));
        }
        self.lists[others].cancelled().await;
        let from: usize = asked.uri.split("continue=").nth(1).map_or(0, |token| token.parse().unwrap());
        if from > 0 {
            // So that something else may happen between two pages.
            sleep(Duration::from_secs(1)).await;
        }
        let objects: Vec<_> = match others {
            0 => self.objects.lock().unwrap().values().cloned().collect(),
            _ => Vec::new(),
        };
        let to = objects.len().min(from.saturating_add(self.page));
        let next = if to < objects.len() { to.to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": "1", "continue": next});
        Some((200, json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": objects[from..to]})))
    }

    fn apply(&self, name: &str, generation: u64, version: u64) {
        let object = object(name, generation, version);
        self.objects.lock().unwrap().insert(name.to_owned(), object.clone());
        self.changes.send(json!({"type": "MODIFIED", "object": object})).unwrap();
    }

    fn delete(&self, name: &str) {
        let object = self.objects.lock().unwrap().remove(name).unwrap();
        self.changes.send(json!({"type": "DELETED", "object": object})).unwrap();
    }

    /// The watch has to list anew.
    fn expire(&self) {
        let status =
            json!({"kind": "Status", "code": 410, "reason": "Expired", "status": "Failure", "message": "too old"});
        self.changes.send(json!({"type": "ERROR", "object": status})).unwrap();
    }

    fn fake(self: &Arc<Self>, concurrency: u16) -> Fake {
        let cluster = Arc::clone(self);
        Fake::slow(1, concurrency, move |asked| Arc::clone(&cluster).answer(asked))
    }
}

fn object(name: &str, generation: u64, version: u64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": name, "namespace": "ns", "uid": name, "generation": generation, "resourceVersion": version.to_string(),
        },
    })
}

fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| number.to_string())
}

type Reconcile = Box<dyn Fn(Arc<ConfigMap>) -> BoxFuture<'static, Result<RequeueAfter, io::Error>> + Send>;

/// What was reconciled, in which generation, and when.
#[derive(Clone)]
struct Log {
    starts: Arc<Mutex<Vec<(String, i64, Duration)>>>,
    began: Instant,
}

impl Log {
    fn new() -> Self {
        Self { starts: Arc::default(), began: Instant::now() }
    }

    /// A reconciler that takes so long, in the term that begins now.
    fn taking(self, time: Duration) -> impl FnOnce(Term) -> Reconcile {
        move |_| {
            Box::new(move |object| {
                let start = (object.name_any(), object.metadata.generation.unwrap(), self.began.elapsed());
                self.starts.lock().unwrap().push(start);
                Box::pin(async move {
                    if time > Duration::ZERO {
                        sleep(time).await;
                    }
                    Ok(None)
                })
            })
        }
    }

    fn names(&self) -> Vec<String> {
        self.starts.lock().unwrap().iter().map(|(name, ..)| name.clone()).collect()
    }

    fn counts(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        self.names().into_iter().for_each(|name| *counts.entry(name).or_default() += 1);
        counts
    }
}

fn controller(fake: &Fake) -> Controller<ConfigMap> {
    Controller::new(Api::all(fake.term.client()), ())
}

/// Runs `work` for as long as `script` takes.
async fn meanwhile<T>(work: impl Future<Output = ()>, script: impl Future<Output = T>) -> T {
    pin!(work, script);
    match select(work, script).await {
        Either::Left(_) => panic!("the work ended by itself"),
        Either::Right((told, _)) => told,
    }
}

async fn seconds(count: u64) {
    sleep(Duration::from_secs(count)).await;
}

#[tokio::test(start_paused = true)]
async fn a_standby_is_prepared_when_all_its_lists_are_complete_and_only_reads() {
    for last in [0, 1] {
        let cluster = Cluster { lists: Default::default(), ..Cluster::paged(names(3), 2) };
        let cluster = Arc::new(cluster);
        let fake = cluster.fake(2);
        let (standby, promotion) = fake.standby();
        let (log, begun) = (Log::new(), CancellationToken::new());
        let controller = controller(&fake)
            .watch(Api::<Secret>::all(fake.term.client()), |_| (Lane::Changed, vec![Name::new(Some("ns"), "0")]));
        let objects = controller.store();
        let begin = {
            let begun = begun.clone();
            let begin = log.clone().taking(MILLISECOND);
            move |term| {
                begun.cancel();
                begin(term)
            }
        };
        let script = async {
            seconds(10).await;
            assert!(!promotion.filled.is_cancelled());
            cluster.lists[1 - last].cancel();
            seconds(10).await;
            assert!(!promotion.filled.is_cancelled(), "one list is still to come");
            cluster.lists[last].cancel();
            seconds(10).await;
            assert!(promotion.filled.is_cancelled());
            cluster.apply("0", 2, 2);
            cluster.apply("new", 1, 3);
            seconds(1000).await;
            assert_eq!(objects.all().len(), 4, "it goes on to follow changes");
        };
        meanwhile(controller.run(standby, begin), script).await;
        assert!(!begun.is_cancelled() && log.names().is_empty(), "no term, no work");
        assert!(fake.asked().len() > 4 && fake.asked().iter().all(|asked| asked.method == Method::GET));
    }
}

#[tokio::test(start_paused = true)]
async fn what_changed_during_standby_is_reconciled_first_the_last_change_before_the_others() {
    let cluster = Cluster::of(names(100));
    let fake = cluster.fake(1);
    let (standby, promotion) = fake.standby();
    let log = Log::new();
    let script = async {
        seconds(10).await;
        for (name, generation, version) in [("50", 2, 2), ("70", 2, 3), ("50", 2, 4), ("60", 1, 5), ("new", 1, 6)] {
            cluster.apply(name, generation, version);
        }
        seconds(10).await;
        assert!(log.names().is_empty());
        promotion.term.send(fake.term.clone()).ok().unwrap();
        seconds(10).await;
    };
    meanwhile(controller(&fake).run(standby, log.clone().taking(MILLISECOND)), script).await;
    // Since, 50 had a write of its status, and 60 nothing else.
    assert_eq!(log.names()[..3], ["new", "70", "50"]);
    assert_eq!(log.starts.lock().unwrap()[2].1, 2, "in its latest generation");
    let counts = log.counts();
    assert!(counts.len() == 101 && counts.values().all(|count| *count == 1), "each once: {counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_status_written_around_a_promotion_makes_nothing_due() {
    let cluster = Cluster::of(names(3));
    let fake = cluster.fake(1);
    let (standby, promotion) = fake.standby();
    let log = Log::new();
    let script = async {
        seconds(10).await;
        cluster.apply("0", 2, 2);
        // Longer than any memory that forgets by time.
        seconds(100_000).await;
        promotion.term.send(fake.term.clone()).ok().unwrap();
        seconds(10).await;
        assert_eq!(log.names().len(), 3);
        cluster.apply("0", 2, 3);
        cluster.apply("1", 1, 4);
        seconds(10).await;
        assert_eq!(log.names().len(), 3);
        cluster.apply("0", 3, 5);
        seconds(10).await;
        assert_eq!((log.names().len(), log.names().last().unwrap().as_str()), (4, "0"));
    };
    meanwhile(controller(&fake).run(standby, log.clone().taking(MILLISECOND)), script).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_does_not_wait_for_the_sweep_of_ten_thousand_objects_and_each_is_swept_once() {
    for warm in [true, false] {
        let cluster = Cluster::of(names(MANY));
        let fake = cluster.fake(4);
        let (mut standby, promotion) = fake.standby();
        let (log, mut promoted) = (Log::new(), Duration::ZERO);
        let script = async {
            if warm {
                seconds(10).await;
                assert!(promotion.filled.is_cancelled());
                promotion.term.send(fake.term.clone()).ok().unwrap();
                promoted = log.began.elapsed();
            }
            seconds(1).await;
            assert!(log.names().len() < MANY / 2, "the sweep is not half done: {}", log.names().len());
            let (swept, at) = (log.counts(), log.began.elapsed());
            let todo = names(MANY).find(|name| !swept.contains_key(name)).unwrap();
            let done = swept.keys().next().unwrap().clone();
            cluster.apply(&todo, 2, 2);
            cluster.apply(&done, 2, 3);
            seconds(60).await;
            (todo, done, at)
        };
        if !warm {
            standby = Standby::of(&fake.term);
        }
        let run = controller(&fake).run(standby, log.clone().taking(MILLISECOND));
        let (todo, done, at) = meanwhile(run, script).await;
        let starts = log.starts.lock().unwrap().clone();
        assert!(starts[0].2 <= promoted + MILLISECOND, "work begins at once");
        for name in [&todo, &done] {
            let start = starts.iter().find(|(of, generation, _)| of == name && *generation == 2).unwrap().2;
            assert!(start - at <= 5 * MILLISECOND, "{name} waited for {:?}", start - at);
        }
        let counts = log.counts();
        assert_eq!(counts.len(), MANY);
        for (name, count) in counts {
            assert_eq!(count, if name == done { 2 } else { 1 }, "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_appears_in_a_list_is_due_when_the_whole_list_is_there() {
    let cluster = Arc::new(Cluster::paged(names(5), 2));
    let fake = cluster.fake(1);
    let log = Log::new();
    let script = async {
        seconds(10).await;
        assert_eq!(log.names().len(), 5);
        // The watch missed it.
        cluster.objects.lock().unwrap().insert("00".to_owned(), object("00", 1, 2));
        cluster.objects.lock().unwrap().insert("1".to_owned(), object("1", 2, 3));
        cluster.expire();
        seconds(100).await;
    };
    meanwhile(controller(&fake).run(Standby::of(&fake.term), log.clone().taking(MILLISECOND)), script).await;
    let starts: Vec<_> = log.starts.lock().unwrap()[5..].iter().map(|(name, now, _)| (name.clone(), *now)).collect();
    assert_eq!(starts, [("00".to_owned(), 1), ("1".to_owned(), 2)]);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_promoted_early_begins_when_its_list_is_complete_and_waits_for_no_other() {
    let cluster = Arc::new(Cluster { lists: Default::default(), ..Cluster::paged(names(10), usize::MAX) });
    let fake = cluster.fake(4);
    let (standby, promotion) = fake.standby();
    let log = Log::new();
    let controller = controller(&fake).watch(Api::<Secret>::all(fake.term.client()), |_| (Lane::Changed, Vec::new()));
    let script = async {
        promotion.term.send(fake.term.clone()).ok().unwrap();
        seconds(10).await;
        assert!(log.names().is_empty());
        cluster.lists[0].cancel();
        seconds(10).await;
        assert_eq!(log.names().len(), 10);
        cluster.lists[1].cancel();
        seconds(10).await;
    };
    meanwhile(controller.run(standby, log.clone().taking(MILLISECOND)), script).await;
    let counts = log.counts();
    assert!(counts.len() == 10 && counts.values().all(|count| *count == 1), "each once: {counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_never_rests_stops_no_work() {
    let cluster = Cluster::of(names(100));
    let fake = cluster.fake(4);
    let (standby, promotion) = fake.standby();
    let (begun, told, left) = (CancellationToken::new(), Arc::new(Mutex::new(0)), Arc::new(Mutex::new(None)));
    let flood = {
        let told = Arc::clone(&told);
        let one = move || {
            *told.lock().unwrap() += 1;
            Name::new(Some("ns"), "0")
        };
        let calm = begun.clone().cancelled_owned().into_stream().filter_map(|()| ready(None));
        calm.chain(stream::repeat_with(one).take(FLOOD)).chain(stream::pending())
    };
    let begin = {
        let left = Arc::clone(&left);
        move |_: Term| {
            begun.cancel();
            let seen = Mutex::new(HashSet::new());
            move |object: Arc<ConfigMap>| {
                seen.lock().unwrap().insert(object.name_any());
                if seen.lock().unwrap().len() == 100 {
                    left.lock().unwrap().get_or_insert(FLOOD - *told.lock().unwrap());
                }
                async { Ok::<_, io::Error>(None) }
            }
        }
    };
    let script = async {
        seconds(10).await;
        promotion.term.send(fake.term.clone()).ok().unwrap();
        seconds(10).await;
    };
    meanwhile(controller(&fake).trigger(flood).run(standby, begin), script).await;
    let left = left.lock().unwrap().expect("all are swept");
    assert!(left > FLOOD / 2, "{left} are left of the flood when all are swept");
}

#[tokio::test(start_paused = true)]
async fn a_drain_in_the_middle_of_the_sweep_ends_with_what_runs() {
    let cluster = Cluster::of(names(MANY));
    let fake = cluster.fake(4);
    let (standby, promotion) = fake.standby();
    let log = Log::new();
    let run = controller(&fake).run(standby, log.clone().taking(10 * MILLISECOND));
    let script = async {
        seconds(10).await;
        promotion.term.send(fake.term.clone()).ok().unwrap();
        seconds(1).await;
        fake.drain.cancel();
        (Instant::now(), log.names().len())
    };
    let (_, (drained, started)) = timeout(Duration::from_secs(60), join(run, script)).await.unwrap();
    assert!(drained.elapsed() <= 12 * MILLISECOND, "{:?}", drained.elapsed());
    assert!((1..1000).contains(&started));
    assert_eq!(log.names().len(), started, "nothing starts after the drain");
}

#[tokio::test(start_paused = true)]
async fn a_term_that_drains_already_starts_nothing() {
    let cluster = Cluster::of(names(10));
    let fake = cluster.fake(4);
    let (standby, promotion) = fake.standby();
    let log = Log::new();
    let run = controller(&fake).run(standby, log.clone().taking(MILLISECOND));
    let script = async {
        seconds(10).await;
        fake.drain.cancel();
        promotion.term.send(fake.term.clone()).ok().unwrap();
    };
    timeout(Duration::from_secs(60), join(run, script)).await.expect("it ends");
    assert!(log.names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_is_dropped_leaves_nothing() {
    let cluster = Cluster::of(names(10));
    let fake = cluster.fake(4);
    let (standby, promotion) = fake.standby();
    let held = Arc::new(());
    let run = {
        let (held, also) = (Arc::clone(&held), Arc::clone(&held));
        let controller = controller(&fake)
            .watch(Api::<Secret>::all(fake.term.client()), move |_| {
                let _ = &held;
                (Lane::Changed, Vec::new())
            })
            .trigger(stream::once(pending()));
        controller.run(standby, move |term| {
            let _ = &also;
            Log::new().taking(MILLISECOND)(term)
        })
    };
    meanwhile(run, seconds(10)).await;
    assert!(promotion.filled.is_cancelled());
    let asked = fake.asked().len();
    assert_eq!(Arc::strong_count(&held), 1);
    assert!(promotion.term.is_closed(), "the supervisor is told");
    cluster.apply("0", 2, 2);
    seconds(1000).await;
    assert_eq!(fake.asked().len(), asked);
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_cannot_be_promoted_any_more_waits_to_be_dropped() {
    let cluster = Cluster::of(names(10));
    let fake = cluster.fake(4);
    let (standby, promotion) = fake.standby();
    let log = Log::new();
    let script = async {
        seconds(10).await;
        drop(promotion);
        for version in 2..5 {
            cluster.apply("0", version, version);
            seconds(10).await;
        }
    };
    meanwhile(controller(&fake).run(standby, log.clone().taking(MILLISECOND)), script).await;
    assert!(log.names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_object_deleted_during_standby_is_not_reconciled_until_it_is_back() {
    let cluster = Cluster::of(names(5));
    let fake = cluster.fake(1);
    let (standby, promotion) = fake.standby();
    let log = Log::new();
    let script = async {
        seconds(10).await;
        cluster.apply("2", 2, 2);
        cluster.apply("3", 2, 3);
        cluster.delete("3");
        cluster.delete("4");
        seconds(10).await;
        promotion.term.send(fake.term.clone()).ok().unwrap();
        seconds(1000).await;
        let swept = log.counts();
        cluster.apply("3", 1, 4);
        seconds(10).await;
        swept
    };
    let swept = meanwhile(controller(&fake).run(standby, log.clone().taking(MILLISECOND)), script).await;
    let mut names: Vec<_> = swept.into_keys().collect();
    names.sort();
    assert_eq!((names.join(" "), log.names()[0].as_str()), ("0 1 2".to_owned(), "2"));
    assert_eq!(log.counts().get("3"), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn a_resync_of_many_lets_changes_go_first() {
    let cluster = Cluster::of(names(1000));
    let fake = cluster.fake(1);
    let log = Log::new();
    let script = async {
        // All of them come back in the last tenth of 600 s, and each takes a second.
        seconds(1000 + 605).await;
        let at = log.began.elapsed();
        cluster.apply("7", 2, 2);
        seconds(100).await;
        at
    };
    let run = controller(&fake).run(Standby::of(&fake.term), log.clone().taking(Duration::from_secs(1)));
    let at = meanwhile(run, script).await;
    let start = log.starts.lock().unwrap().iter().find(|(_, generation, _)| *generation == 2).unwrap().2;
    assert!(start - at <= Duration::from_millis(1010), "{:?}", start - at);
}
