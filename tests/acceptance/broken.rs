//! A kind breaks while it runs: its CRD or its permissions go. Every replica says so, no replica leads it, and it comes back.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::{
    program::Said,
    stage::{PATIENCE, Stage, ensure, play, tell},
    things::{Things, now},
};

/// From the loss of a CRD until every replica says so, and from its return until the kind is worked on again.
const SOON: Duration = Duration::from_secs(15);
/// From the loss of a permission until every replica says so: the API server goes on with a watch that it has allowed.
const REVOKED: Duration = Duration::from_secs(60);

/// What asks for a kind that no replica can run is told so, and does not wait.
const REFUSED: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_whose_crd_is_deleted_is_given_up_until_it_is_back() -> Result<()> {
    play(Stage::set("nocrd", 1).await?, |stage| async {
        let things = Things::set(stage, 3).await?;
        worked_on(&things, "before").await?;
        things.uninstall().await?;
        given_up(&things, SOON, &["crd", "customresourcedefinition"]).await?;
        things.install().await?;
        back(&things).await
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_whose_permissions_are_taken_away_is_given_up_until_they_are_back() -> Result<()> {
    play(Stage::set("revoked", 1).await?, |stage| async {
        let things = Things::set(stage, 3).await?;
        worked_on(&things, "before").await?;
        things.grant("[get, update, patch]").await?;
        given_up(&things, REVOKED, &["list", "watch", "not allowed", "forbidden"]).await?;
        things.grant("[get, list, watch, update, patch]").await?;
        back(&things).await
    })
    .await;
    Ok(())
}

async fn worked_on(things: &Things<'_>, name: &str) -> Result<()> {
    things.put(name, "1").await?;
    things.served(name, "1", PATIENCE).await?;
    Ok(())
}

/// Waits until all replicas say that they are blocked, and why; the Lease is free then, and cannot be handed over.
async fn given_up(things: &Things<'_>, within: Duration, why: &[&str]) -> Result<()> {
    let began = now();
    let is_blocked = |row: &Value| {
        let reason = row["reason"].as_str().unwrap_or_default().to_lowercase();
        row["state"] == "Blocked" && reason.contains(&things.group) && why.iter().any(|word| reason.contains(word))
    };
    things.all_say("that they are blocked", within, is_blocked).await?;
    tell(&format!(
        "all replicas say that they are blocked after {:.1?}: {}",
        began.elapsed(),
        things.replicas[0].shard(&things.kind()).await?["reason"]
    ));
    let left = within.saturating_sub(began.elapsed()).max(Duration::from_secs(1));
    let free = |holders: &std::collections::BTreeMap<String, String>| !holders.contains_key(&things.lease());
    leasehold_cluster::eventually("the Lease is released", left, || things.stage.holders(), free).await?;
    tell(&format!("the Lease is free after {:.1?}", began.elapsed()));
    let asked = [things.kind(), "--timeout".to_owned(), "30".to_owned()];
    let asked: Vec<_> = asked.iter().map(String::as_str).collect();
    let (began, kubeconfig) = (now(), things.stage.cluster.kubeconfig());
    let said = Said::by_hand_over(kubeconfig, &things.stage.namespace, &asked).await?;
    // Refused, and not tried for as long as it may take.
    ensure(said.code.is_some_and(|code| code != 0) && began.elapsed() < REFUSED, || {
        format!("a kind that no replica can run is not refused at once, but after {:.1?}: {said:?}", began.elapsed())
    })
}

/// Waits until the kind is worked on again.
async fn back(things: &Things<'_>) -> Result<()> {
    let began = now();
    things.put("after", "1").await?;
    things.served("after", "1", SOON).await?;
    tell(&format!("worked on again after {:.1?}", began.elapsed()));
    Ok(())
}
