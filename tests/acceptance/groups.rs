//! Kinds that share a Lease: those of a group, and all of them under `election: {mode: Single}`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use leasehold_cluster::{Signal, eventually};

use crate::{
    judge::{Stored, What, history, judge},
    lone::{Lone, Plan, Program, all_ready},
    program::Said,
    stage::{LEASE, PATIENCE, Stage, TIMINGS, ensure, name_of, play, tell},
};

const SINGLE: &str = "election: {mode: Single, lease: {name: all-of-them}}";

/// A planned handover costs each kind of a group no more than this; it takes tens of milliseconds when all is well.
const PLANNED: Duration = Duration::from_secs(3);

/// A configuration of the stage's kinds: `top` is a line of its own, `fields` are those of the kind of this number.
pub fn config(
    stage: &Stage,
    folder: &Path,
    name: &str,
    top: &str,
    fields: impl Fn(usize) -> &'static str,
) -> Result<PathBuf> {
    let Stage { namespace, placement, kinds, .. } = stage;
    let kind = |(number, name): (usize, &String)| {
        let fields = fields(number);
        format!(
            "- {{apiVersion: observer.leasehold.dev/v1, kind: {name}, {fields}reconciler: {{builtin: observer}}}}\n"
        )
    };
    let kinds: String = kinds.iter().enumerate().map(kind).collect();
    let file = folder.join(format!("{name}.yaml"));
    std::fs::write(
        &file,
        format!(
            "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\ninstance: {namespace}\nleases: {{{TIMINGS}}}\n\
             placement: {{{placement}}}\ndrainTimeout: 3s\n{top}\nkinds:\n{kinds}"
        ),
    )?;
    Ok(file)
}

async fn start(stage: &Stage, name: &str, config: &Path) -> Result<Lone> {
    let plan = Plan { environment: &[("STANDS_BY", "true")], ..Plan::new(Program::Observer, name, config) };
    Lone::start(stage, plan).await
}

/// Waits until all of these kinds are written by one replica of which this is true; its holder identity.
async fn led_together(stage: &Stage, kinds: &[String], by: impl Fn(&str) -> bool) -> Result<String> {
    let look = || async {
        let mut holders = BTreeSet::new();
        for kind in kinds {
            holders.insert(stage.written_by(kind, |_| true).await?);
        }
        anyhow::Ok(holders)
    };
    let together = |holders: &BTreeSet<String>| holders.len() == 1 && holders.iter().all(|holder| by(holder));
    let holders = eventually("one replica writes all of them", PATIENCE, look, together).await?;
    holders.into_iter().next().context("a holder")
}

/// From the last write of one to the first of the other.
fn gap(stage: &Stage, kind: &str, old: &str, new: &str) -> Result<Duration> {
    let history = history(stage, kind)?;
    let worked = |by: &str| {
        let by = by.to_owned();
        move |stored: &&Stored| matches!(&stored.what, What::Worked { holder, .. } if *holder == by)
    };
    let last = history.iter().rev().find(worked(old)).context("the old one wrote")?;
    let first = history.iter().find(worked(new)).context("the new one wrote")?;
    Ok(first.at.duration_since(last.at).unsigned_abs())
}

fn tell_gaps(stage: &Stage, what: &str, old: &str, new: &str) -> Result<Duration> {
    let gaps: Result<Vec<_>> = stage.kinds.iter().map(|kind| gap(stage, kind, old, new)).collect();
    let gaps = gaps?;
    tell(&format!("{what}: each kind was without a leader for {gaps:.2?}"));
    gaps.into_iter().max().context("a kind")
}

/// Names of the Leases of kinds that are held, and what they say of themselves.
async fn held_leases(stage: &Stage) -> Result<Vec<(String, String)>> {
    let leases: Api<Lease> = Api::namespaced(stage.client.clone(), &stage.namespace);
    let mut held = Vec::new();
    for name in stage.holders().await?.into_keys() {
        let kinds = leases.get(&name).await?.metadata.annotations.unwrap_or_default().remove("leasehold.dev/kind");
        held.push((name, kinds.unwrap_or_default()));
    }
    Ok(held)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lock_for_all_kinds_is_handed_over_and_survives_a_crash() -> Result<()> {
    let mut stage = Stage::set("single", 3).await?;
    stage.stubborn = false;
    play(stage, |stage| async {
        let folder = tempfile::tempdir()?;
        let file = config(stage, folder.path(), "single", SINGLE, |_| "")?;
        let mut first = start(stage, "first", &file).await?;
        let a = led_together(stage, &stage.kinds, |holder| first.is(holder)).await?;
        let mut second = start(stage, "second", &file).await?;
        second.answers("/readyz", 200, PATIENCE).await?;
        let names: Vec<_> = stage.kinds.iter().map(|kind| name_of(kind)).collect();
        let held = held_leases(stage).await?;
        ensure(held == [("all-of-them".to_owned(), names.join(","))], || {
            format!("one Lease that names all: {held:?}")
        })?;
        let row = first.shard(&names[1]).await?;
        ensure(row["group"] == "all-of-them" && row["state"] == "Leading", || format!("/shards says {row}"))?;

        first.signal(Signal::TERM)?;
        let b = led_together(stage, &stage.kinds, |holder| second.is(holder)).await?;
        let status = first.ends(PATIENCE).await?;
        ensure(status.success(), || format!("a clean stop: {status}"))?;
        let longest = tell_gaps(stage, "a planned handover of all kinds", &a, &b)?;
        ensure(longest < PLANNED, || format!("a planned handover took {longest:?}"))?;

        let third = start(stage, "third", &file).await?;
        third.answers("/readyz", 200, PATIENCE).await?;
        second.signal(Signal::KILL)?;
        second.ends(PATIENCE).await?;
        let c = led_together(stage, &stage.kinds, |holder| third.is(holder)).await?;
        let longest = tell_gaps(stage, "a crash without proof", &b, &c)?;
        ensure(longest < 2 * LEASE, || format!("a crash cost {longest:?}"))
    })
    .await;
    Ok(())
}

/// The first two kinds are a group.
fn pair(number: usize) -> &'static str {
    if number < 2 { "group: pair, " } else { "" }
}

/// Tokens of the terms in which a kind was written, in their order.
fn terms(stage: &Stage, kind: &str) -> Result<Vec<(String, i64)>> {
    let mut terms: Vec<(String, i64)> = Vec::new();
    for stored in history(stage, kind)? {
        let What::Worked { uid, transitions, .. } = stored.what else { continue };
        if terms.last() != Some(&(uid.clone(), transitions)) {
            terms.push((uid, transitions));
        }
    }
    Ok(terms)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_counts_with_all_of_its_weight_moves_as_one_and_fails_as_one() -> Result<()> {
    let mut stage = Stage::set("group", 4).await?;
    stage.stubborn = false;
    play(stage, |stage| async {
        let folder = tempfile::tempdir()?;
        let file = config(stage, folder.path(), "pair", "", pair)?;
        let replicas = [start(stage, "one", &file).await?, start(stage, "two", &file).await?];
        all_ready(&replicas).await?;
        let (group, plain) = stage.kinds.split_at(2);
        // Two kinds of a group weigh as much as two others.
        let shares = || async {
            let pair = led_together(stage, group, |_| true).await?;
            anyhow::Ok((pair, led_together(stage, plain, |_| true).await?))
        };
        let apart = |(pair, plain): &(String, String)| pair != plain;
        let (holder, other) = eventually("the group is here and the others are there", PATIENCE, shares, apart).await?;
        let held: BTreeSet<_> = held_leases(stage).await?.into_iter().map(|(name, _)| name).collect();
        ensure(held.len() == 3 && held.contains("pair"), || {
            format!("a Lease for the group and one for each: {held:?}")
        })?;
        let before: Result<Vec<_>> = plain.iter().map(|kind| terms(stage, kind)).collect();
        let before = before?;

        let said =
            Said::by_hand_over(stage.cluster.kubeconfig(), &stage.namespace, &[&group[1], "--to", &other]).await?;
        ensure(said.code == Some(0) && said.stdout.contains("they move together"), || format!("{said:?}"))?;
        let moved = led_together(stage, group, |now| now == other).await?;
        let longest = group.iter().map(|kind| gap(stage, kind, &holder, &moved)).collect::<Result<Vec<_>>>()?;
        tell(&format!("a group handed over by hand: {longest:.2?} without a leader"));

        // One kind fails: the term of both ends, and both begin another one.
        let ended = [terms(stage, &group[0])?.len(), terms(stage, &group[1])?.len()];
        stage.order(&group[1], Some("fail")).await?;
        let again = || async { anyhow::Ok(terms(stage, &group[0])?.len()) };
        eventually("the term of the other kind ends as well", PATIENCE, again, |now| *now > ended[0]).await?;
        stage.order(&group[1], None).await?;
        let again = || async { anyhow::Ok(terms(stage, &group[1])?.len()) };
        eventually("both begin another one", PATIENCE, again, |now| *now > ended[1]).await?;
        led_together(stage, group, |_| true).await?;
        // Where the group goes the others make room, and come back; they have no other part in it.
        for (kind, before) in plain.iter().zip(before) {
            let moves = terms(stage, kind)?.len() - before.len();
            tell(&format!("{kind}, which is of no group, moved {moves} times"));
            ensure(moves <= 2, || format!("{kind} moved {moves} times"))?;
        }
        Ok(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_is_not_served_blocks_its_group_and_no_other_until_it_is() -> Result<()> {
    let mut stage = Stage::set("unserved", 3).await?;
    stage.stubborn = false;
    play(stage, |stage| async {
        let crd = format!("{}.observer.leasehold.dev", crate::stage::plural(&stage.kinds[1]));
        stage.cluster.kubectl(&["delete", "crd", &crd, "--timeout=60s"]).await?;
        let folder = tempfile::tempdir()?;
        let file = config(stage, folder.path(), "pair", "", pair)?;
        let replica = start(stage, "one", &file).await?;
        stage.written_by(&stage.kinds[2], |holder| replica.is(holder)).await?;
        let first = name_of(&stage.kinds[0]);
        let says = || replica.shard(&first);
        let why = |row: &serde_json::Value| {
            row["reason"]
                .as_str()
                .is_some_and(|why| why.contains(&format!("{} shares its Lease", name_of(&stage.kinds[1]))))
        };
        let row = eventually("it says which kind blocks the group", PATIENCE, says, why).await?;
        tell(&format!("while the CRD of {} is missing: {row}", stage.kinds[1]));
        stage.install(&stage.kinds[1]).await?;
        let began = crate::things::now();
        stage.put_object(&stage.kinds[1]).await?;
        led_together(stage, &stage.kinds[..2], |holder| replica.is(holder)).await?;
        tell(&format!("both kinds are led {:.1?} after the CRD was there", began.elapsed()));
        Ok(())
    })
    .await;
    Ok(())
}

/// Kinds change who they share a Lease with: the old configuration leads, a replica of the new one joins, the old one stops.
async fn rolls(name: &str, before: [&'static str; 2], after: [&'static str; 2]) -> Result<()> {
    let mut stage = Stage::set(name, 2).await?;
    stage.stubborn = false;
    play(stage, |stage| async move {
        let folder = tempfile::tempdir()?;
        let file = |name: &str, [top, fields]: [&'static str; 2]| config(stage, folder.path(), name, top, |_| fields);
        let (before, after) = (file("before", before)?, file("after", after)?);
        let mut old = start(stage, "old", &before).await?;
        let a = led_together(stage, &stage.kinds, |holder| old.is(holder)).await?;
        let new = start(stage, "new", &after).await?;
        new.answers("/readyz", 200, PATIENCE).await?;
        // A Lease that looks free is taken within one lease duration, and both would go on for as long as both live.
        tokio::time::sleep(3 * LEASE).await;
        judge(stage)?;
        led_together(stage, &stage.kinds, |holder| holder == a).await?;
        let (_, said) = new.get("/shards").await?;
        tell(&format!("while the old replica leads, the new one says {said}"));
        old.signal(Signal::TERM)?;
        let b = led_together(stage, &stage.kinds, |holder| new.is(holder)).await?;
        let longest = tell_gaps(stage, "the last old replica stops", &a, &b)?;
        ensure(longest < 2 * LEASE, || format!("the kinds were without a leader for {longest:?}"))?;
        let status = old.ends(PATIENCE).await?;
        ensure(status.success(), || format!("the old replica stops cleanly: {status}"))
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_from_a_lock_for_each_kind_to_one_for_all_never_leads_a_kind_twice() -> Result<()> {
    rolls("tosingle", ["", ""], [SINGLE, ""]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_from_one_lock_for_all_to_one_for_each_kind_never_leads_a_kind_twice() -> Result<()> {
    rolls("fromsingle", [SINGLE, ""], ["", ""]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_puts_kinds_into_a_group_never_leads_a_kind_twice() -> Result<()> {
    rolls("togroup", ["", ""], ["", "group: pair, "]).await
}
