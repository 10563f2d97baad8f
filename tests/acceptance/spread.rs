//! Whatever joins, leaves, crashes or rolls, the kinds end up even, and each moves no more often than it must.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use kube::{Api, ResourceExt, api::ListParams};
use leasehold_cluster::{Signal, eventually};

use crate::{
    handover::silence,
    judge::{What, history},
    stage::{LEASE, PATIENCE, Stage, ensure, lease_of, not, play, pod_of},
};

const KINDS: usize = 10;

/// Ten kinds are too many for reconcilers that write fifty times a second.
async fn ten(name: &str) -> Result<Stage> {
    let mut stage = Stage::set(name, KINDS).await?;
    stage.stubborn = false;
    stage.beat = 250;
    Ok(stage)
}

impl Stage {
    /// Waits until the kinds are spread within one over exactly this many replicas, each of which satisfies `by`.
    pub async fn even(&self, replicas: usize, by: impl Fn(&str) -> bool) -> Result<BTreeMap<String, String>> {
        let names: BTreeSet<_> = self.kinds.iter().map(|kind| lease_of(kind)).collect();
        let even = |holders: &BTreeMap<String, String>| {
            let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
            for (_, holder) in holders.iter().filter(|(lease, _)| names.contains(*lease)) {
                *shares.entry(holder).or_default() += 1;
            }
            let (least, most) = (shares.values().min().copied(), shares.values().max().copied());
            shares.values().sum::<usize>() == names.len()
                && shares.len() == replicas.min(names.len())
                && shares.keys().all(|holder| by(pod_of(holder)))
                && most.unwrap_or(0) - least.unwrap_or(0) <= 1
        };
        let what = format!("{} kinds are even over {replicas} replicas", names.len());
        eventually(&what, PATIENCE, || self.holders(), even).await
    }

    /// Every acquisition of a kind by another holder after a moment.
    fn moves(&self, kind: &str, after: Timestamp) -> Result<Vec<String>> {
        let mut holder = String::new();
        let mut moves = Vec::new();
        for stored in history(self, kind)? {
            if let What::Leased { holder: next, .. } = &stored.what
                && !next.is_empty()
                && *next != holder
            {
                if stored.at >= after && !holder.is_empty() {
                    moves.push(next.clone());
                }
                holder.clone_from(next);
            }
        }
        Ok(moves)
    }

    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", &self.namespace], arguments].concat()).await
    }

    async fn scale(&self, replicas: usize) -> Result<()> {
        self.kubectl(&["scale", "deployment/observer", &format!("--replicas={replicas}")]).await?;
        self.rolled_out().await
    }

    pub async fn rolled_out(&self) -> Result<()> {
        self.kubectl(&["rollout", "status", "deployment/observer", "--timeout=120s"]).await?;
        Ok(())
    }

    async fn pod_names(&self) -> Result<Vec<String>> {
        Ok(self.pods().await?.iter().map(ResourceExt::name_any).collect())
    }

    /// The Leases of replicas, by holder identity.
    async fn members(&self) -> Result<Vec<Lease>> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        Ok(leases.list(&ListParams::default().labels("leasehold.dev/role=replica")).await?.items)
    }
}

#[expect(clippy::disallowed_methods, reason = "compared with the API server's, which is of this machine")]
fn now() -> Timestamp {
    Timestamp::now()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kinds_spread_roll_once_each_and_follow_the_scale() -> Result<()> {
    play(ten("ten").await?, |stage| async {
        stage.replicas(3).await?;
        stage.even(3, |_| true).await?;

        let (old, began) = (stage.pod_names().await?, now());
        stage.kubectl(&["rollout", "restart", "deployment/observer"]).await?;
        stage.rolled_out().await?;
        let is_new = |pod: &str| !old.iter().any(|old| old == pod);
        stage.even(3, is_new).await?;
        for kind in &stage.kinds {
            let moves = stage.moves(kind, began)?;
            ensure(moves.len() == 1, || format!("{kind} moved to {moves:?} in a rolling restart"))?;
            ensure(is_new(pod_of(&moves[0])), || format!("{kind} moved to an old pod: {moves:?}"))?;
        }

        let began = now();
        stage.scale(5).await?;
        stage.even(5, |_| true).await?;
        let moved: usize = moves_of_all(stage, began)?;
        ensure(moved == 4, || format!("two of five replicas are new, so four kinds must move, and {moved} did"))?;

        let (began, before) = (now(), stage.holders().await?);
        stage.scale(2).await?;
        let after = stage.even(2, |_| true).await?;
        let kept = after.values().collect::<BTreeSet<_>>();
        // Three stop at once, and one of them may be named by another before it is known to stop: its kinds move on.
        for kind in &stage.kinds {
            let (stays, moves) = (kept.contains(&before[&lease_of(kind)]), stage.moves(kind, began)?);
            ensure(if stays { moves.is_empty() } else { (1..=2).contains(&moves.len()) }, || {
                format!("{kind} of {} moved to {moves:?}", before[&lease_of(kind)])
            })?;
        }
        Ok(())
    })
    .await;
    Ok(())
}

fn moves_of_all(stage: &Stage, after: Timestamp) -> Result<usize> {
    stage.kinds.iter().map(|kind| Ok(stage.moves(kind, after)?.len())).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_stops_half_way_and_is_rolled_back_ends_even() -> Result<()> {
    play(ten("paused").await?, |stage| async {
        stage.replicas(3).await?;
        stage.even(3, |_| true).await?;
        let first = stage.pod_names().await?;
        let template = |name: &str, value: &str| {
            format!("{{\"spec\":{{\"template\":{{\"metadata\":{{\"annotations\":{{\"{name}\":\"{value}\"}}}}}}}}}}")
        };
        // New pods that never become ready: nobody is handed anything, and nobody loses anything.
        let began = now();
        let broken =
            "{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"observer\",\"args\":[\"/nowhere\"]}]}}}}";
        stage.kubectl(&["patch", "deployment/observer", "-p", broken]).await?;
        let crashed = || async {
            let pods = stage.pods().await?;
            let restarts = |pod: &k8s_openapi::api::core::v1::Pod| {
                let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone());
                statuses.unwrap_or_default().first().map_or(0, |container| container.restart_count)
            };
            anyhow::Ok(pods.iter().map(restarts).max().unwrap_or(0))
        };
        eventually("a new pod crashes", PATIENCE, crashed, |restarts| *restarts > 1).await?;
        stage.kubectl(&["rollout", "undo", "deployment/observer"]).await?;
        stage.rolled_out().await?;
        stage.even(3, |pod| first.iter().any(|old| old == pod)).await?;
        let moved = moves_of_all(stage, began)?;
        ensure(moved == 0, || format!("{moved} kinds moved because of pods that never ran"))?;

        // Paused when the first new pod is there: what an old one gives up goes to it.
        stage.kubectl(&["patch", "deployment/observer", "-p", &template("roll", "1")]).await?;
        let new = || async {
            let holders = stage.holders().await?;
            anyhow::Ok(holders.values().filter(|holder| !first.iter().any(|old| old == pod_of(holder))).count())
        };
        eventually("a new pod leads", PATIENCE, new, |count| *count > 0).await?;
        stage.kubectl(&["rollout", "pause", "deployment/observer"]).await?;
        stage.all_led().await?;
        stage.kubectl(&["rollout", "resume", "deployment/observer"]).await?;
        stage.kubectl(&["rollout", "undo", "deployment/observer"]).await?;
        stage.rolled_out().await?;
        stage.even(3, |_| true).await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_takes_back_what_it_led_without_waiting() -> Result<()> {
    let mut stage = ten("takeback").await?;
    // The others give it half of the grace at least, and this machine may be busy.
    stage.placement = "grace: 4s, settle: 2s";
    play(stage, |stage| async {
        stage.replicas(3).await?;
        let before = stage.even(3, |_| true).await?;
        let (kind, old) = (&stage.kinds[0], before[&lease_of(&stage.kinds[0])].clone());
        stage.kubelet.signal(&stage.namespace, pod_of(&old), Signal::KILL)?;
        let new = stage.held(kind, |holder| holder != old).await?;
        ensure(pod_of(&new) == pod_of(&old), || format!("{new} took what {old} had led"))?;
        let waited = silence(stage, kind, &old, &new)?;
        println!("last renewal to take-back: {waited:?}");
        ensure(waited < LEASE, || format!("{waited:?} from the last renewal to the take-back"))?;
        let after = stage.even(3, |_| true).await?;
        let pods = |holders: &BTreeMap<String, String>| -> BTreeMap<String, String> {
            holders.iter().map(|(lease, holder)| (lease.clone(), pod_of(holder).to_owned())).collect()
        };
        ensure(pods(&before) == pods(&after), || format!("{before:?} became {after:?}"))?;
        let of_old = || async { stage.members().await };
        let gone = |members: &Vec<Lease>| {
            let holder = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
            members.len() == 3 && members.iter().all(|lease| holder(lease).as_deref() != Some(&old))
        };
        eventually("the dead process's membership is collected", PATIENCE, of_old, gone).await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_container_is_succeeded_before_its_lease_expires() -> Result<()> {
    play(Stage::set("terminated", 2).await?, |stage| async {
        stage.replicas(2).await?;
        stage.even(2, |_| true).await?;
        let kind = &stage.kinds[0];
        let old = stage.held(kind, |_| true).await?;
        // It hangs, so that nothing is handed over; the kubelet kills it, and starts it no more.
        stage.kubelet.signal(&stage.namespace, pod_of(&old), Signal::STOP)?;
        stage.kubectl(&["delete", "pod", pod_of(&old), "--grace-period=1", "--wait=false"]).await?;
        let new = stage.held(kind, not(pod_of(&old))).await?;
        stage.written_by(kind, |holder| holder == new).await?;
        let waited = silence(stage, kind, &old, &new)?;
        println!("last renewal to succession: {waited:?}");
        ensure(waited < LEASE, || format!("{waited:?} from the last renewal to the succession"))?;
        stage.even(2, |_| true).await?;
        Ok(())
    })
    .await;
    Ok(())
}

/// The Pod object is gone and its process may live: that is no proof.
#[tokio::test(flavor = "multi_thread")]
async fn a_force_deleted_pod_is_waited_for() -> Result<()> {
    play(Stage::set("forced", 2).await?, |stage| async {
        stage.replicas(2).await?;
        stage.even(2, |_| true).await?;
        let kind = &stage.kinds[0];
        let old = stage.held(kind, |_| true).await?;
        // Cut off and frozen: it can say nothing, and neither can its container's status come before the Pod is gone.
        stage.proxy_of(&old)?.partition();
        stage.kubectl(&["delete", "pod", pod_of(&old), "--grace-period=0", "--force", "--wait=false"]).await?;
        let new = stage.held(kind, not(pod_of(&old))).await?;
        let waited = silence(stage, kind, &old, &new)?;
        println!("last renewal to succession: {waited:?}");
        ensure(waited >= LEASE, || format!("{waited:?} from the last renewal to the succession"))?;
        stage.even(2, |_| true).await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_that_stop_at_once_hand_everything_over() -> Result<()> {
    play(ten("two").await?, |stage| async {
        stage.replicas(3).await?;
        stage.even(3, |_| true).await?;
        let began = now();
        let pods = stage.pod_names().await?;
        for pod in &pods[..2] {
            stage.kubelet.signal(&stage.namespace, pod, Signal::TERM)?;
        }
        stage.all_led().await?;
        stage.even(3, |_| true).await?;
        // Each kind of the two goes to the third, or to one that came back; and from the third some go back.
        let most = stage.kinds.iter().map(|kind| Ok(stage.moves(kind, began)?.len())).collect::<Result<Vec<_>>>()?;
        ensure(most.iter().all(|moves| *moves <= 2), || format!("moves a kind: {most:?}"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_may_add_remove_and_weigh_kinds() -> Result<()> {
    play(Stage::set("skew", 4).await?, |stage| async {
        let kinds: Vec<_> = stage.kinds.iter().map(String::as_str).collect();
        stage.apply(3, &[(kinds[0], 1), (kinds[1], 1), (kinds[2], 1)]).await?;
        stage.rolled_out().await?;
        let old = stage.pod_names().await?;
        for kind in &kinds[..3] {
            stage.held(kind, |_| true).await?;
        }
        // The first kind goes, the last one comes, and one of them weighs as much as all others.
        stage.apply(3, &[(kinds[1], 2), (kinds[2], 1), (kinds[3], 1)]).await?;
        stage.rolled_out().await?;
        for kind in &kinds[1..] {
            stage.held(kind, |holder| !old.iter().any(|old| old == pod_of(holder))).await?;
        }
        let known = history(stage, kinds[3])?.into_iter().filter_map(|stored| match stored.what {
            What::Leased { holder, .. } if !holder.is_empty() => Some(holder),
            _ => None,
        });
        let old_ones: Vec<_> = known.filter(|holder| old.iter().any(|old| old == pod_of(holder))).collect();
        ensure(old_ones.is_empty(), || format!("{old_ones:?} held a kind that they do not know"))?;
        let alone = |holders: &BTreeMap<String, String>| {
            let heavy = holders.get(&lease_of(kinds[1]));
            holders.values().filter(|holder| Some(*holder) == heavy).count() == 1
        };
        eventually("the heavy kind is alone", PATIENCE, || stage.holders(), alone).await?;
        let leases: Api<Lease> = Api::namespaced(stage.client.clone(), &stage.namespace);
        let removed = || async { leases.get_opt(&lease_of(kinds[0])).await };
        eventually("the removed kind's Lease is collected", PATIENCE, removed, Option::is_none).await?;
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_explain_themselves() -> Result<()> {
    play(Stage::set("explain", 1).await?, |stage| async {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let members = || async { stage.members().await };
        eventually("two replicas are there", PATIENCE, members, |members| members.len() == 2).await?;
        let leases: Api<Lease> = Api::namespaced(stage.client.clone(), &stage.namespace);
        for lease in leases.list(&ListParams::default()).await?.items {
            let instance = lease.labels().get("leasehold.dev/instance").context("an instance label")?;
            ensure(*instance == stage.namespace, || format!("{lease:?}"))?;
            let about = lease.annotations().get("leasehold.dev/about").context("a sentence about itself")?;
            ensure(about.contains(instance.as_str()), || about.clone())?;
        }
        let described = stage.kubectl(&["describe", "lease", &lease_of(&stage.kinds[0])]).await?;
        for said in ["leasehold.dev/role=shard", "leasehold.dev/kind", "leasehold.dev/about", "Holder Identity"] {
            ensure(described.contains(said), || format!("{said} is missing from\n{described}"))?;
        }
        Ok(())
    })
    .await;
    Ok(())
}
