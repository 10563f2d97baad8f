//! Grey replicas: alive and well by their own word, and of no use. None of them costs a kind more than one bounded gap.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use leasehold_cluster::{Fault, Rule, Silence, eventually};
use serde_json::json;

use crate::{
    judge::{What, history},
    lone::{Lone, Plan, Program, observer},
    stage::{LEASE, PATIENCE, Stage, ensure, lease_of, play, plural, tell},
    things::{Things, now},
};

/// How long the kinds are looked at beside a replica that cannot acquire, and how much of that is a first gap's.
const LOOKED_AT: Duration = Duration::from_secs(60);
const FIRST: Duration = Duration::from_secs(20);

/// Of that time a kind is worked on for this share at least, and never left for longer than this.
const SHARE: f64 = 0.95;
const GAP: Duration = Duration::from_secs(5);

/// A reconciler that writes every [`BEAT`] is idle when it has not written for this long: longer than a busy machine takes.
const IDLE: Duration = Duration::from_secs(1);
const BEAT: Duration = Duration::from_millis(100);

/// Who refuses what a replica asks for.
#[derive(Clone, Copy)]
enum Refusal {
    /// An admission policy of the cluster.
    Policy,
    /// What stands between this replica and the API server.
    Proxy,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_acquisitions_a_policy_refuses_starves_no_kind() -> Result<()> {
    refused("policy", Refusal::Policy).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_acquisitions_are_forbidden_starves_no_kind() -> Result<()> {
    refused("forbidden", Refusal::Proxy).await
}

async fn refused(name: &str, by: Refusal) -> Result<()> {
    let mut stage = Stage::set(name, 4).await?;
    stage.beat = BEAT.as_millis().try_into()?;
    stage.stubborn = false;
    play(stage, |stage| async move {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let able: Vec<_> = stage.pods().await?.iter().map(ResourceExt::name_any).collect();
        if let Refusal::Policy = by {
            stage.refuse_acquisitions_of_all_but(&able).await?;
        }
        stage.replicas(3).await?;
        let pods = stage.pods().await?;
        let grey = pods.iter().map(ResourceExt::name_any).find(|pod| !able.contains(pod)).context("a third pod")?;
        if let Refusal::Proxy = by {
            let proxy = stage.kubelet.proxy(&stage.namespace, &grey).context("proxy")?;
            for kind in &stage.kinds {
                let forbidden = Fault::Status { code: 403, retry_after: None };
                proxy.add(Rule::new(forbidden).verbs(&["PUT", "POST"]).resource("leases").path(&lease_of(kind)));
            }
        }
        let began = timestamp();
        tokio::time::sleep(LOOKED_AT).await;
        let ended = timestamp();
        let looked_at = (began + SignedDuration::try_from(FIRST)?, ended);
        let mut worst: (f64, Duration) = (1.0, Duration::ZERO);
        for kind in &stage.kinds {
            let (share, longest) = worked(stage, kind, looked_at)?;
            let moves = moves(stage, kind, (began, ended))?;
            tell(&format!(
                "{kind} beside {grey}: worked on {:.1} %, longest gap {longest:.1?}, {moves} moves",
                share * 100.0
            ));
            worst = (worst.0.min(share), worst.1.max(longest));
        }
        ensure(worst.0 >= SHARE && worst.1 <= GAP, || {
            format!(
                "beside {grey}, which cannot acquire, a kind is worked on {:.1} % of the time, longest gap {:.1?}",
                worst.0 * 100.0,
                worst.1
            )
        })
    })
    .await;
    Ok(())
}

impl Stage {
    /// An admission policy that lets only these pods become holder of a Lease of a kind; memberships are free.
    async fn refuse_acquisitions_of_all_but(&self, pods: &[String]) -> Result<()> {
        let namespace = &self.namespace;
        let able: Vec<_> =
            pods.iter().map(|pod| format!("object.spec.?holderIdentity.orValue('').startsWith('{pod}_')")).collect();
        let expression = format!(
            "object.metadata.?labels['leasehold.dev/role'].orValue('') == 'replica' || object.spec.?holderIdentity.orValue('') == '' || {}",
            able.join(" || ")
        );
        let validation = json!({"expression": expression, "message": "not for this replica"});
        self.refuse_unless("coordination.k8s.io", "leases", &validation).await?;
        let probe = format!(
            "{{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {{name: probe, namespace: {namespace}}}, spec: {{holderIdentity: another}}}}"
        );
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("probe.yaml");
        std::fs::write(&file, probe)?;
        let file = file.display().to_string();
        let tried = || async {
            let tried = self.cluster.kubectl(&["create", "--dry-run=server", "-f", &file]).await;
            anyhow::Ok(tried.map_or_else(|error| format!("{error:#}"), |_| "accepted".to_owned()))
        };
        eventually("the policy is in force", PATIENCE, tried, |said| said.contains("not for this replica")).await?;
        Ok(())
    }
}

/// For which share of a time a kind was worked on, and for how long it was left at the most.
fn worked(stage: &Stage, kind: &str, (from, to): (Timestamp, Timestamp)) -> Result<(f64, Duration)> {
    let writes = history(stage, kind)?.into_iter().filter(|stored| matches!(stored.what, What::Worked { .. }));
    let within = writes.map(|stored| stored.at).filter(|at| (from..to).contains(at));
    let mut moments: Vec<_> = [from, to].into_iter().chain(within).collect();
    moments.sort();
    let gaps = moments.windows(2).map(|pair| pair[1].duration_since(pair[0]).unsigned_abs());
    let gaps: Vec<_> = gaps.filter(|gap| *gap > IDLE).collect();
    let left: Duration = gaps.iter().sum();
    let all = to.duration_since(from).as_secs_f64();
    Ok((1.0 - left.as_secs_f64() / all, gaps.into_iter().max().unwrap_or_default()))
}

/// How often a kind's Lease got another holder in a time.
fn moves(stage: &Stage, kind: &str, (from, to): (Timestamp, Timestamp)) -> Result<usize> {
    let mut last = None;
    let mut moves = 0;
    for stored in history(stage, kind)? {
        if let What::Leased { holder, .. } = stored.what
            && !holder.is_empty()
            && last.as_ref() != Some(&holder)
        {
            moves += usize::from((from..to).contains(&stored.at));
            last = Some(holder);
        }
    }
    Ok(moves)
}

#[expect(clippy::disallowed_methods, reason = "compared with the API server's, which is of this machine")]
fn timestamp() -> Timestamp {
    Timestamp::now()
}

/// What is noticed by a ping in client-go, and by the end of a watch of five minutes in kube.
const NOTICED: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_connections_go_silent_serves_the_next_change_soon() -> Result<()> {
    play(Stage::set("silent", 1).await?, |stage| async {
        let things = Things::set(stage, 2).await?;
        things.put("it", "1").await?;
        things.served("it", "1", PATIENCE).await?;
        let leader = things.led(PATIENCE, |_| true).await?;
        leader.proxy.freeze();
        things.put("it", "2").await?;
        let took = things.served("it", "2", NOTICED).await?;
        tell(&format!(
            "the next change after all connections of {} went silent was served after {took:.1?}",
            leader.name
        ));
        Ok(())
    })
    .await;
    Ok(())
}

/// How long a kind may have a leader that does not hear of its objects.
const DEAF: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_watches_hang_gives_the_kind_up() -> Result<()> {
    play(Stage::set("deaf", 1).await?, |stage| async {
        let things = Things::set(stage, 2).await?;
        things.put("it", "1").await?;
        things.served("it", "1", PATIENCE).await?;
        let deaf = things.led(PATIENCE, |_| true).await?;
        deaf.proxy.add(Rule::new(Fault::BlackHole).verbs(&["WATCH"]).resource("things"));
        // The watch that runs is silent from here on; those that follow are not answered.
        things.put("it", "2").await?;
        let began = now();
        let next = things.led(DEAF, |replica| replica.name != deaf.name).await?;
        tell(&format!("{} follows {}, which is deaf, after {:.1?}", next.name, deaf.name, began.elapsed()));
        things.served("it", "2", PATIENCE).await?;
        Ok(())
    })
    .await;
    Ok(())
}

/// More than a narrow window takes, and less than a kernel buffers.
const PADDING: usize = 16 << 10;
const WINDOW: usize = 4 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_write_left_in_the_kernel_does_not_land_after_the_term() -> Result<()> {
    let mut stage = Stage::set("kernel", 1).await?;
    stage.stubborn = false;
    play(stage, |stage| async {
        let kind = &stage.kinds[0];
        let folder = tempfile::tempdir()?;
        let config = observer(stage, folder.path(), "config", "", "")?;
        let padding = PADDING.to_string();
        let environment = [("PADDING", padding.as_str()), ("BEAT", "1000")];
        let plan = Plan { environment: &environment, window: WINDOW, ..Plan::new(Program::Observer, "old", &config) };
        let old = Lone::start(stage, plan).await?;
        stage.written_by(kind, |holder| old.is(holder)).await?;
        let new = Lone::start(stage, Plan::new(Program::Observer, "new", &config)).await?;
        new.answers("/readyz", 200, PATIENCE).await?;
        let port: u16 = old.proxy.url().rsplit(':').next().context("port")?.parse()?;

        // Between two writes, so that the next one begins in the partition, on a connection that there is.
        let writes = || async {
            let worked = history(stage, kind)?.into_iter().filter(|stored| matches!(stored.what, What::Worked { .. }));
            anyhow::Ok(worked.count())
        };
        let so_far = writes().await?;
        eventually("the old holder writes again", PATIENCE, writes, |writes| *writes > so_far).await?;
        tokio::time::sleep(Duration::from_millis(150)).await;
        old.proxy.partition();
        let unsent = || async { unsent(port) };
        eventually("a write lies in the kernel", LEASE, unsent, |bytes| *bytes > PADDING / 2).await?;
        // What reaches the proxy is carried out, as by a server that has read it all when its client goes away.
        let carried_out = Fault::AppliedButUnanswered(Silence::Close);
        old.proxy.add(Rule::new(carried_out).verbs(&["PATCH"]).resource(&plural(kind)));
        let next = stage.held(kind, |holder| new.is(holder)).await?;
        stage.written_by(kind, |holder| holder == next).await?;
        // The old term is over by every clock.
        tokio::time::sleep(LEASE).await;
        tell(&format!("{} bytes of the old holder lie in the kernel when its successor works", self::unsent(port)?));
        let (before, patches) = (old.proxy.requests().values().sum::<u64>(), old.proxy.count("PATCH", &plural(kind)));
        old.proxy.heal();
        let requests = || async { anyhow::Ok(old.proxy.requests().values().sum::<u64>()) };
        eventually("the old holder takes part again", PATIENCE, requests, |now| *now > before + 5).await?;
        // The kernel asks ever more rarely whether there is room again, and nothing hurries it.
        let left = || async { self::unsent(port) };
        eventually("the kernel has nothing left to send", PATIENCE, left, |bytes| *bytes == 0).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        tell(&format!("{} writes of the ended term arrive", old.proxy.count("PATCH", &plural(kind)) - patches));
        let history = history(stage, kind)?;
        let taken = history
            .iter()
            .position(|stored| matches!(&stored.what, What::Leased { holder, .. } if *holder == next))
            .context("the Lease was taken")?;
        let late = history[taken..]
            .iter()
            .find(|stored| matches!(&stored.what, What::Worked { holder, .. } if old.is(holder)));
        ensure(late.is_none(), || {
            format!("a write of the old term landed: {}", late.map_or_else(String::new, ToString::to_string))
        })
    })
    .await;
    Ok(())
}

/// How many bytes towards a port of this machine its kernel keeps for connections that do not take them.
fn unsent(port: u16) -> Result<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let to = format!(":{port:04X}");
    let queue = |line: &str| {
        let mut fields = line.split_whitespace().skip(2);
        let (remote, queues) = (fields.next()?, fields.nth(1)?);
        let bytes = usize::from_str_radix(queues.split(':').next()?, 16).ok()?;
        remote.ends_with(&to).then_some(bytes)
    };
    Ok(table.lines().skip(1).filter_map(queue).max().unwrap_or(0))
}
