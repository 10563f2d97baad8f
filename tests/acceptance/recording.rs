//! Series of replicas while things go wrong, recorded from their `/metrics`: what the alerts are tested with.
//!
//! `RECORD=1 cargo test --test acceptance recorded_` plays every failure on the real control plane, all at the same time, and
//! writes `tests/monitoring/NAME.yaml`: input for promtool, with those series that the rules read. `RECORD=NAME,NAME` does
//! some of them, on a machine that is too small for all. Without it the test does nothing: it takes ten minutes. Kinds and
//! namespaces are renamed, so that a recording does not depend on which tests ran before it.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use leasehold_cluster::{Fault, Rule, Signal, eventually, get};
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    contested::rival,
    lone::{Lone, Plan, Program, all_ready, observer},
    monitoring::{folder, read_by_rules},
    stage::{PATIENCE, Stage, ensure, lease_of, name_of, play, tell},
    things::Things,
};

/// Between two scrapes, as deploy/monitoring has it.
pub const INTERVAL: Duration = Duration::from_secs(15);
/// A replica that has not answered by then is down.
const ANSWER: Duration = Duration::from_secs(5);
/// What kinds are called in a recording.
const KINDS: [&str; 4] = ["Widget", "Gadget", "Gizmo", "Gear"];
const NAMESPACE: &str = "leasehold-system";

/// One that is scraped: the name of its Pod, where it answers, and in which namespace a recording has it.
type Targets = Arc<Mutex<BTreeMap<String, (String, String)>>>;

/// A recording as it goes on.
pub struct Recording {
    name: &'static str,
    what: &'static str,
    targets: Targets,
    /// What Pods are called in the recording.
    pods: BTreeMap<String, String>,
    renamed: Vec<(String, String)>,
    /// By series, one value a scrape.
    series: BTreeMap<String, Vec<Option<f64>>>,
    scrapes: usize,
    began: k8s_openapi::jiff::Timestamp,
    next: Instant,
}

#[expect(clippy::disallowed_methods, reason = "a recording says when it was made")]
fn wall_clock() -> k8s_openapi::jiff::Timestamp {
    k8s_openapi::jiff::Timestamp::now()
}

#[expect(clippy::disallowed_methods, reason = "when the first scrape is")]
fn now() -> Instant {
    Instant::now()
}

impl Recording {
    /// Of what happens on this stage.
    fn of(stage: &Stage, name: &'static str, what: &'static str) -> Self {
        let mut renamed = Vec::new();
        for (kind, to) in stage.kinds.iter().zip(KINDS) {
            renamed.push((name_of(kind), format!("{to}.example.com")));
            renamed.push((lease_of(kind), format!("{}.example.com", to.to_lowercase())));
        }
        renamed.push((format!("Thing.{}.things.example.com", stage.namespace), "Thing.example.com".to_owned()));
        renamed.push((format!("thing.{}.things.example.com", stage.namespace), "thing.example.com".to_owned()));
        renamed.push((format!("{}.things.example.com", stage.namespace), "example.com".to_owned()));
        renamed.push((format!("\"{}\"", stage.namespace), format!("\"{NAMESPACE}\"")));
        Self {
            name,
            what,
            targets: Targets::default(),
            pods: BTreeMap::new(),
            renamed,
            series: BTreeMap::new(),
            scrapes: 0,
            began: wall_clock(),
            next: now(),
        }
    }

    /// Scrapes these replicas from now on.
    fn of_replicas<'r>(self, replicas: impl IntoIterator<Item = &'r Lone>) -> Self {
        replicas.into_iter().for_each(|replica| self.add(&replica.name, &replica.address));
        self
    }

    fn add(&self, pod: &str, address: &str) {
        self.add_in(pod, address, NAMESPACE);
    }

    fn add_in(&self, pod: &str, address: &str, namespace: &str) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.insert(pod.to_owned(), (address.to_owned(), namespace.to_owned()));
    }

    /// Scrapes the Pods of a stage from now on. They get short names.
    async fn add_pods(&mut self, stage: &Stage) -> Result<()> {
        for pod in stage.pods().await? {
            let known = self.pods.len();
            let short = self.pods.entry(pod.name_any()).or_insert_with(|| format!("leasehold-{known}")).clone();
            if let Some(ip) = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()) {
                self.add(&short, &format!("{ip}:8080"));
            }
        }
        Ok(())
    }

    /// Its Pod is gone.
    fn remove(&self, pod: &str) {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).remove(pod);
    }

    /// Scrapes all of them once, when it is time to.
    async fn scrape(&mut self) {
        sleep_until(self.next).await;
        if self.scrapes == 0 {
            // While others start, the machine has no room for what is to be well.
            SETTING.fetch_sub(1, Ordering::Relaxed);
            let others = || async { anyhow::Ok(SETTING.load(Ordering::Relaxed)) };
            if eventually("the other plays are set", 2 * PATIENCE, others, |others| *others == 0).await.is_err() {
                tell(&format!("{}: recorded while others are being set", self.name));
            }
            self.began = wall_clock();
            self.next = now();
        }
        self.next += INTERVAL;
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let answers = targets.into_iter().map(|(pod, (address, namespace))| async move {
            let page = timeout(ANSWER, get(&address, "/metrics")).await.ok().and_then(Result::ok);
            (format!("namespace=\"{namespace}\",job=\"leasehold\",pod=\"{pod}\""), page)
        });
        for (labels, page) in futures::future::join_all(answers).await {
            self.note(format!("up{{{labels}}}"), f64::from(u8::from(page.is_some())));
            for line in page.iter().flat_map(|page| page.lines()).filter(|line| !line.starts_with('#')) {
                let Some((series, value)) = line.rsplit_once(' ') else { continue };
                let Ok(value) = value.parse() else { continue };
                let mut series = match series.split_once('{').filter(|(_, more)| *more != "}") {
                    Some((name, more)) => format!("{name}{{{labels},{more}"),
                    None => format!("{}{{{labels}}}", series.trim_end_matches("{}")),
                };
                for (from, to) in &self.renamed {
                    series = series.replace(from, to);
                }
                self.note(series, value);
            }
        }
        self.scrapes += 1;
    }

    fn note(&mut self, series: String, value: f64) {
        let values = self.series.entry(series).or_default();
        values.resize(self.scrapes, None);
        values.push(Some(value));
    }

    /// Scrapes for so long.
    async fn run(&mut self, lasts: Duration) {
        let until = self.scrapes + usize::try_from(lasts.as_secs() / INTERVAL.as_secs()).unwrap_or(0);
        while self.scrapes < until {
            self.scrape().await;
        }
    }

    /// Writes what the rules read, going on for so long with what was seen last.
    fn write(mut self, goes_on: Duration) -> Result<()> {
        let more = usize::try_from(goes_on.as_secs() / INTERVAL.as_secs())?;
        let read = read_by_rules()?;
        self.series.retain(|series, _| {
            let name = series.split('{').next().unwrap_or_default();
            read.contains(name)
        });
        let mut text = format!("# {}\n", self.what);
        if more > 0 {
            text += &format!("# The last {more} values of each series are the one that was scraped last.\n");
        }
        text += &format!("name: {}\ninterval: {}s\n", self.name, INTERVAL.as_secs());
        text += &format!("start_timestamp: {}\ninput_series:\n", self.began.as_second());
        for (series, mut values) in self.series {
            values.resize(self.scrapes, None);
            values.extend(std::iter::repeat_n(values.last().copied().flatten(), more));
            text += &format!("- series: '{series}'\n  values: '{}'\n", notation(&values));
        }
        let file = folder().join(format!("{}.yaml", self.name));
        std::fs::create_dir_all(folder())?;
        std::fs::write(&file, text).with_context(|| file.display().to_string())?;
        tell(&format!("recorded {}", file.display()));
        Ok(())
    }
}

/// Values as promtool reads them. A series that is missing from a scrape ends with a marker, as Prometheus has it.
fn notation(values: &[Option<f64>]) -> String {
    let mut words: Vec<(String, usize)> = Vec::new();
    let mut before = None;
    for value in values {
        let word = match (value, before) {
            (Some(value), _) => {
                let rounded = (value * 1000.0).round() / 1000.0;
                format!("{rounded}")
            }
            (None, Some(_)) => "stale".to_owned(),
            (None, None) => "_".to_owned(),
        };
        before = *value;
        match words.last_mut() {
            Some((last, count)) if *last == word && word != "stale" => *count += 1,
            _ => words.push((word, 1)),
        }
    }
    let words = words.into_iter().map(|(word, count)| match (word.as_str(), count) {
        (_, 1) => word,
        ("_", count) => format!("_x{count}"),
        // The value, and so many more.
        (_, count) => format!("{word}x{}", count - 1),
    });
    words.collect::<Vec<_>>().join(" ")
}

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

type Failure = (&'static str, fn(&'static str) -> BoxFuture<'static, Result<()>>);

/// Plays that are not recorded yet.
static SETTING: AtomicUsize = AtomicUsize::new(0);

/// Every failure, and what is well.
const FAILURES: &[Failure] = &[
    ("healthy", |name| healthy(name).boxed()),
    ("healthy-work", |name| healthy_work(name).boxed()),
    ("partitioned", |name| partitioned(name).boxed()),
    ("late-renewals", |name| late_renewals(name).boxed()),
    ("deaf", |name| deaf(name).boxed()),
    ("denied", |name| denied(name).boxed()),
    ("blocked-on-one", |name| blocked_on_one(name).boxed()),
    ("foreign-holder", |name| foreign_holder(name).boxed()),
    ("missed-takeovers", |name| missed_takeovers(name).boxed()),
    ("failing-term", |name| failing_term(name).boxed()),
    ("frozen", |name| frozen(name).boxed()),
    ("standby-writes", |name| standby_writes(name).boxed()),
    ("refused-writes", |name| refused_writes(name).boxed()),
    ("unwatched-children", |name| unwatched_children(name).boxed()),
    ("fight", |name| fight(name).boxed()),
    ("slow-work", |name| slow_work(name).boxed()),
    ("two-leaders", |name| two_leaders(name).boxed()),
    ("bad-rollout", |name| bad_rollout(name).boxed()),
    ("too-large", |name| too_large(name).boxed()),
    ("certificate-ends", |name| certificate(name, true).boxed()),
    ("no-certificate", |name| certificate(name, false).boxed()),
    ("down", |name| down(name).boxed()),
];

#[tokio::test(flavor = "multi_thread")]
async fn recorded_failures_are_those_that_the_alerts_are_tested_with() -> Result<()> {
    let Ok(wanted) = std::env::var("RECORD") else {
        tell("RECORD=1 records every failure anew, RECORD=NAME,NAME some; `monitoring` tests what was recorded");
        return Ok(());
    };
    let wanted: Vec<&str> = wanted.split(',').collect();
    let unknown = wanted.iter().find(|name| **name != "1" && !FAILURES.iter().any(|(known, _)| known == *name));
    ensure(unknown.is_none(), || format!("no failure is called {unknown:?}"))?;
    let played: Vec<_> = FAILURES.iter().filter(|(name, _)| wanted.contains(&"1") || wanted.contains(name)).collect();
    SETTING.store(played.len(), Ordering::Relaxed);
    let played = played
        .into_iter()
        .map(|(name, fails)| async move { (*name, AssertUnwindSafe(fails(name)).catch_unwind().await) });
    let mut playing: FuturesUnordered<_> = played.collect();
    let mut failed = Vec::new();
    while let Some((name, outcome)) = playing.next().await {
        match outcome {
            Ok(Ok(())) => tell(&format!("{name}: done")),
            Ok(Err(error)) => failed.push(format!("{name}: {error:#}")),
            // The panic has said why.
            Err(_) => failed.push(format!("{name} did not end well")),
        }
    }
    ensure(failed.is_empty(), || failed.join("\n"))
}

/// Observers of a stage that are processes of this test.
async fn observers(stage: &Stage, names: &[&str], leases: &str, environment: &[(&str, &str)]) -> Result<Vec<Lone>> {
    let folder = tempfile::tempdir()?.keep();
    let mut replicas = Vec::new();
    for name in names {
        let config = observer(stage, &folder, name, leases, "")?;
        let plan = Plan { environment, ..Plan::new(Program::Observer, name, &config) };
        replicas.push(Lone::start(stage, plan).await?);
    }
    all_ready(&replicas).await?;
    stage.all_led().await?;
    Ok(replicas)
}

/// A stage whose play is no matter of judging.
async fn stage(name: &str, kinds: usize) -> Result<Stage> {
    let mut stage = Stage::set(name, kinds).await?;
    (stage.judged, stage.stubborn, stage.beat) = (false, false, 1000);
    Ok(stage)
}

/// Many replicas run at the same time: each writes once a second, and leaves room for the others.
const BEAT: (&str, &str) = ("BEAT", "1000");

async fn healthy(name: &'static str) -> Result<()> {
    play(stage(name, 3).await?, |stage| async move {
        let replicas = observers(stage, &["a", "b", "c"], "", &[BEAT]).await?;
        let what = "All is well, and each replica is replaced, one after the other.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&replicas);
        recording.run(minutes(2)).await;
        let mut later = Vec::new();
        for (mut old, new) in replicas.into_iter().zip(["d", "e", "f"]) {
            let new = observers(stage, &[new], "", &[BEAT]).await?.remove(0);
            recording.add(&new.name, &new.address);
            recording.run(Duration::from_secs(30)).await;
            old.signal(Signal::TERM)?;
            old.ends(PATIENCE).await?;
            recording.remove(&old.name);
            recording.run(Duration::from_secs(30)).await;
            later.push(new);
        }
        recording.run(minutes(3)).await;
        recording.write(minutes(45))
    })
    .await;
    Ok(())
}

async fn healthy_work(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let mut things = Things::set(stage, 2).await?;
        things.put("it", "0").await?;
        things.served("it", "0", PATIENCE).await?;
        let what = "Objects change and are reconciled, and the leader is replaced.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&things.replicas);
        for number in 0..10 {
            things.put("it", &number.to_string()).await?;
            recording.scrape().await;
        }
        let leader = things.led(PATIENCE, |_| true).await?.name.clone();
        let at = things.replicas.iter().position(|replica| replica.name == leader).context("the leader")?;
        let mut old = things.replicas.remove(at);
        old.signal(Signal::TERM)?;
        old.ends(PATIENCE).await?;
        recording.remove(&leader);
        for number in 10..28 {
            things.put("it", &number.to_string()).await?;
            recording.scrape().await;
        }
        recording.write(minutes(10))
    })
    .await;
    Ok(())
}

async fn partitioned(name: &'static str) -> Result<()> {
    let mut stage = stage(name, 2).await?;
    stage.stubborn = true;
    play(stage, |stage| async move {
        let replicas = observers(stage, &["a", "b"], "", &[BEAT, ("STUBBORN", "true")]).await?;
        let what = "No replica reaches the API server, and each has a task that goes on writing.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&replicas);
        recording.run(minutes(1)).await;
        replicas.iter().for_each(|replica| replica.proxy.partition());
        recording.run(minutes(4)).await;
        recording.write(minutes(3))
    })
    .await;
    Ok(())
}

async fn late_renewals(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let replicas = observers(stage, &["a"], "", &[BEAT]).await?;
        let what = "From time to time the API server closes connections that write Leases, for two seconds of a renew deadline of three.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&replicas);
        recording.run(minutes(1)).await;
        for _ in 0..6 {
            sleep_until(recording.next - Duration::from_millis(1900)).await;
            let rule = replicas[0].proxy.add(Rule::new(Fault::Drop).verbs(&["PUT"]).resource("leases"));
            recording.scrape().await;
            replicas[0].proxy.remove(rule);
        }
        recording.write(Duration::ZERO)
    })
    .await;
    Ok(())
}

async fn deaf(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let things = Things::set(stage, 2).await?;
        things.put("it", "1").await?;
        things.served("it", "1", PATIENCE).await?;
        let what = "The watches of the leader hang.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&things.replicas);
        recording.run(minutes(1)).await;
        let leader = things.led(PATIENCE, |_| true).await?;
        leader.proxy.add(Rule::new(Fault::BlackHole).verbs(&["WATCH"]).resource("things"));
        things.put("it", "2").await?;
        recording.run(minutes(2)).await;
        recording.write(Duration::ZERO)
    })
    .await;
    Ok(())
}

async fn denied(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let replicas = observers(stage, &["a", "b"], "", &[BEAT]).await?;
        let what = "The permission to list and watch the kind is taken away.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&replicas);
        recording.run(minutes(1)).await;
        stage.grant_kinds("[get, patch]").await?;
        recording.run(minutes(4)).await;
        recording.write(minutes(2))
    })
    .await;
    Ok(())
}

async fn blocked_on_one(name: &'static str) -> Result<()> {
    play(stage(name, 3).await?, |stage| async move {
        let mut replicas = observers(stage, &["a"], "", &[BEAT]).await?;
        let folder = tempfile::tempdir()?;
        let config = observer(stage, folder.path(), "b", "", "")?;
        let text =
            std::fs::read_to_string(&config)?.replace("observer.leasehold.dev/v1,", "observer.leasehold.dev/v2,");
        std::fs::write(&config, text)?;
        replicas.push(
            Lone::start(stage, Plan { environment: &[BEAT], ..Plan::new(Program::Observer, "b", &config) }).await?,
        );
        all_ready(&replicas).await?;
        let what = "One replica has a configuration with a version of the kinds that the API server does not serve.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&replicas);
        recording.run(minutes(3)).await;
        recording.write(minutes(45))
    })
    .await;
    Ok(())
}

async fn foreign_holder(name: &'static str) -> Result<()> {
    play(stage(name, 2).await?, |stage| async move {
        // Who is no stranger is known by the Pods.
        stage.replicas(2).await?;
        stage.all_led().await?;
        let what = "A stranger writes itself on the Lease of a kind, for ten minutes.";
        let mut recording = Recording::of(stage, name, what);
        recording.add_pods(stage).await?;
        recording.run(minutes(1)).await;
        let leases: Api<Lease> = Api::namespaced(stage.client.clone(), &stage.namespace);
        let stranger = json!({"spec": {"holderIdentity": "stranger", "leaseDurationSeconds": 600}});
        leases.patch(&lease_of(&stage.kinds[0]), &PatchParams::default(), &Patch::Merge(stranger)).await?;
        recording.run(minutes(3)).await;
        recording.write(Duration::ZERO)
    })
    .await;
    Ok(())
}

async fn missed_takeovers(name: &'static str) -> Result<()> {
    play(stage(name, 4).await?, |stage| async move {
        let mut replicas = observers(stage, &["a", "b"], "", &[BEAT]).await?;
        let what = "The API server refuses a third replica's writes of the Leases of kinds.";
        let folder = tempfile::tempdir()?;
        let config = observer(stage, folder.path(), "c", "", "")?;
        let mut recording = Recording::of(stage, name, what).of_replicas(&replicas);
        recording.run(minutes(1)).await;
        let grey =
            Lone::start(stage, Plan { environment: &[BEAT], ..Plan::new(Program::Observer, "c", &config) }).await?;
        for kind in &stage.kinds {
            let forbidden = Fault::Status { code: 403, retry_after: None };
            grey.proxy.add(Rule::new(forbidden).verbs(&["PUT", "POST"]).resource("leases").path(&lease_of(kind)));
        }
        recording.add("c", &grey.address);
        replicas.push(grey);
        recording.run(minutes(3)).await;
        recording.write(Duration::ZERO)
    })
    .await;
    Ok(())
}

async fn failing_term(name: &'static str) -> Result<()> {
    play(stage(name, 2).await?, |stage| async move {
        let replicas = observers(stage, &["a", "b"], "", &[BEAT]).await?;
        let what = "The reconciler of a kind fails.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&replicas);
        recording.run(minutes(1)).await;
        stage.order(&stage.kinds[0], Some("fail")).await?;
        recording.run(Duration::from_secs(45)).await;
        stage.order(&stage.kinds[0], None).await?;
        recording.run(minutes(1)).await;
        recording.write(Duration::ZERO)
    })
    .await;
    Ok(())
}

async fn frozen(name: &'static str) -> Result<()> {
    let mut stage = stage(name, 2).await?;
    stage.stubborn = true;
    play(stage, |stage| async move {
        let replicas = observers(stage, &["a", "b"], "", &[BEAT, ("STUBBORN", "true")]).await?;
        let what = "A leader is frozen for half a minute, and goes on.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&replicas);
        recording.run(minutes(1)).await;
        let holder = stage.held(&stage.kinds[0], |_| true).await?;
        let leader = replicas.iter().find(|replica| replica.is(&holder)).context("the leader")?;
        leader.signal(Signal::STOP)?;
        recording.run(Duration::from_secs(30)).await;
        leader.signal(Signal::CONT)?;
        recording.run(minutes(2)).await;
        recording.write(Duration::ZERO)
    })
    .await;
    Ok(())
}

async fn standby_writes(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let replicas = observers(stage, &["a", "b"], "", &[BEAT, ("OBSERVES", "true")]).await?;
        let what = "An observer of the kind tries to write.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&replicas);
        recording.run(minutes(2)).await;
        recording.write(Duration::ZERO)
    })
    .await;
    Ok(())
}

async fn refused_writes(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let things = Things::set(stage, 2).await?;
        things.put("it", "0").await?;
        things.served("it", "0", PATIENCE).await?;
        let what = "An admission policy refuses the children of the kind.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&things.replicas);
        recording.run(minutes(1)).await;
        let never = json!({"expression": "false", "message": "not here", "reason": "Forbidden"});
        stage.refuse_unless("", "configmaps", &never).await?;
        // Each change is tried again by itself, less and less often; the change of another object is tried at once.
        for number in 1..=32 {
            things.put(&format!("new-{number}"), "1").await?;
            recording.scrape().await;
        }
        recording.write(Duration::ZERO)
    })
    .await;
    Ok(())
}

async fn unwatched_children(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let mut things = Things::without_replicas(stage).await?;
        let replica = Lone::start(stage, Plan::new(Program::Leasehold, "replica-0", things.folder.path())).await?;
        let forbidden = Fault::Status { code: 403, retry_after: None };
        replica.proxy.add(Rule::new(forbidden).verbs(&["GET", "WATCH"]).resource("configmaps"));
        things.replicas.push(replica);
        things.put("it", "0").await?;
        let what = "The API server refuses to list the children of the kind.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&things.replicas);
        recording.run(minutes(6)).await;
        recording.write(minutes(1))
    })
    .await;
    Ok(())
}

async fn fight(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let things = Things::set(stage, 2).await?;
        things.put("fought", "ours").await?;
        things.served("fought", "ours", PATIENCE).await?;
        let what = "Another writer changes a child back each time that it is written.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&things.replicas);
        recording.run(minutes(1)).await;
        let _fighting = rival(stage.client.clone(), &stage.namespace);
        recording.run(minutes(4)).await;
        recording.write(Duration::ZERO)
    })
    .await;
    Ok(())
}

async fn slow_work(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let things = Things::set(stage, 2).await?;
        let what = "Each write of a child takes 1.5 seconds, and 800 objects are new.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&things.replicas);
        recording.run(minutes(1)).await;
        for replica in &things.replicas {
            replica.proxy.add(Rule::new(Fault::Delay(Duration::from_millis(1500))).writes().resource("configmaps"));
        }
        let all = (0..800).map(|number| {
            format!(
                "---\n{{apiVersion: {}/v1, kind: Thing, metadata: {{name: it-{number}, namespace: {}}}, spec: {{value: \"1\"}}}}\n",
                things.group, stage.namespace
            )
        });
        stage.cluster.apply(&all.collect::<String>()).await?;
        recording.run(minutes(5)).await;
        recording.write(Duration::ZERO)
    })
    .await;
    Ok(())
}

async fn two_leaders(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let elsewhere = format!("{}-other", stage.namespace);
        stage.cluster.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {elsewhere}}}}}")).await?;
        let role = format!(
            r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: leases, namespace: {elsewhere}}}
rules: [{{apiGroups: [coordination.k8s.io], resources: [leases], verbs: ["*"]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: leases, namespace: {elsewhere}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: leases}}
subjects: [{{kind: ServiceAccount, name: observer, namespace: {}}}]
"#,
            stage.namespace
        );
        stage.cluster.apply(&role).await?;
        let replicas = observers(stage, &["a"], "", &[BEAT]).await?;
        let what = "Two installations are configured for a kind, with Leases in two namespaces of which neither sees the other.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&replicas);
        recording.run(minutes(1)).await;
        let others = observers(stage, &["b"], &format!(", namespace: {elsewhere}"), &[BEAT]).await?;
        recording.add_in("b", &others[0].address, "other");
        recording.run(minutes(2)).await;
        recording.write(Duration::ZERO)
    })
    .await;
    Ok(())
}

async fn bad_rollout(name: &'static str) -> Result<()> {
    play(stage(name, 2).await?, |stage| async move {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let what = "A rollout brings a configuration that is refused: the new Pod ends again and again.";
        let mut recording = Recording::of(stage, name, what);
        recording.add_pods(stage).await?;
        recording.run(minutes(1)).await;
        // No kind has this weight.
        stage.apply(2, &[(stage.kinds[0].as_str(), 1), (stage.kinds[1].as_str(), 0)]).await?;
        for _ in 0..28 {
            recording.add_pods(stage).await?;
            recording.scrape().await;
        }
        ensure(recording.pods.len() == 3, || format!("a third Pod: {:?}", recording.pods))?;
        recording.write(minutes(2))
    })
    .await;
    Ok(())
}

async fn too_large(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let things = Things::without_replicas(stage).await?;
        let file = things.folder.path().join("leasehold.yaml");
        let text = std::fs::read_to_string(&file)?
            .replace("{compose: thing.yaml}", "{compose: thing.yaml}, limits: {object: 4Ki}");
        std::fs::write(&file, text)?;
        let things = things.with(2).await?;
        things.put("it", "1").await?;
        things.served("it", "1", PATIENCE).await?;
        let what = "An object is larger than the kind allows.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&things.replicas);
        recording.run(minutes(1)).await;
        things.put("large", &"x".repeat(8 << 10)).await?;
        recording.run(minutes(2)).await;
        recording.write(minutes(5))
    })
    .await;
    Ok(())
}

/// A certificate of the webhooks' Service in a folder, good for a day and a bit.
fn put_certificate(folder: &Path, namespace: &str) -> Result<()> {
    let names = ["svc", "svc.cluster.local"].map(|end| format!("leasehold-webhooks.{namespace}.{end}"));
    let pair = leasehold::webhooks::certificate::make(&names, Duration::from_secs(30 * 3600), wall_clock())?;
    std::fs::write(folder.join("tls.crt"), pair.chain)?;
    std::fs::write(folder.join("tls.key"), pair.key)?;
    std::fs::write(folder.join("ca.crt"), pair.authority)?;
    Ok(())
}

async fn certificate(name: &'static str, is_there: bool) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let mut things = Things::without_replicas(stage).await?;
        let certificates = things.folder.path().join("certificates");
        std::fs::create_dir(&certificates)?;
        if is_there {
            put_certificate(&certificates, &stage.namespace)?;
        }
        let file = things.folder.path().join("leasehold.yaml");
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let webhooks =
            format!("webhooks: {{enabled: true, port: {port}, certificate: {{files: {}}}}}\n", certificates.display());
        std::fs::write(&file, std::fs::read_to_string(&file)? + &webhooks)?;
        let replica = Lone::start(stage, Plan::new(Program::Leasehold, "replica-0", things.folder.path())).await?;
        replica.answers("/livez", 200, PATIENCE).await?;
        things.replicas.push(replica);
        things.led(PATIENCE, |_| true).await?;
        let what = match is_there {
            true => "The certificate of the webhooks ends tomorrow, and the API server asks no webhook.",
            false => "There is no certificate for the webhooks, and the API server asks none.",
        };
        let mut recording = Recording::of(stage, name, what).of_replicas(&things.replicas);
        recording.run(minutes(2)).await;
        recording.write(minutes(6))
    })
    .await;
    Ok(())
}

async fn down(name: &'static str) -> Result<()> {
    play(stage(name, 1).await?, |stage| async move {
        let mut replicas = observers(stage, &["a", "b"], "", &[BEAT]).await?;
        let what = "The processes of all replicas are killed, and do not come again.";
        let mut recording = Recording::of(stage, name, what).of_replicas(&replicas);
        recording.run(minutes(1)).await;
        for replica in &mut replicas {
            replica.signal(Signal::KILL)?;
            replica.ends(PATIENCE).await?;
        }
        recording.run(minutes(1)).await;
        recording.write(minutes(7))
    })
    .await;
    Ok(())
}
