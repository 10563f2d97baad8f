//! What a replica shares with the world is full or busy: its log, its endpoints. Its Leases are renewed, its kinds reconciled.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use leasehold_cluster::eventually;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    lone::{Lone, Plan, Program},
    stage::{LEASE, PATIENCE, RETRY, Stage, ensure, play},
    things::{Things, now},
};

/// A renewal is late when the one before is older than this.
const LATE: Duration = Duration::from_millis(1_500);
const _: () = assert!(LATE.as_millis() == RETRY.as_millis() + 1_000);

/// How long standard error stays full.
const FULL: Duration = Duration::from_secs(30);
/// A change is served in this time on a busy machine.
const SERVED: Duration = Duration::from_secs(10);

impl Things<'_> {
    /// The longest time between two renewals of the kind's Lease since a number of audit events.
    fn longest_between_renewals(&self, since: usize) -> Result<(Duration, usize)> {
        let lease = self.lease();
        let renewals: Vec<Timestamp> = self
            .stage
            .cluster
            .audit_from(since)?
            .into_iter()
            .filter(|event| event.resource == "leases" && event.verb == "update" && event.succeeded())
            .filter(|event| event.name.as_ref() == Some(&lease))
            .filter(|event| {
                let holder = event.response_object.as_ref().and_then(|object| object.pointer("/spec/holderIdentity"));
                holder.and_then(Value::as_str).is_some_and(|holder| !holder.is_empty())
            })
            .map(|event| event.stage)
            .collect();
        let gaps = renewals.windows(2).map(|pair| pair[1].duration_since(pair[0]).unsigned_abs());
        let last = renewals.last().map(|last| timestamp().duration_since(*last).unsigned_abs());
        let longest = gaps.chain(last).max().context("the Lease is renewed")?;
        Ok((longest, renewals.len()))
    }
}

#[expect(clippy::disallowed_methods, reason = "compared with the API server's, which is of this machine")]
fn timestamp() -> Timestamp {
    Timestamp::now()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_standard_error_stops_nothing() -> Result<()> {
    play(Stage::set("full", 1).await?, |stage| async {
        let mut things = Things::without_replicas(stage).await?;
        let environment = [("RUST_LOG", "trace")];
        let plan = Plan::new(Program::Leasehold, "replica-0", things.folder.path());
        let plan = Plan { environment: &environment, unread: true, ..plan };
        things.replicas.push(Lone::start(stage, plan).await?);
        things.led(3 * LEASE, |_| true).await.context("with a full standard error")?;
        things.put("it", "first").await?;
        println!("the first change was served after {:.1?}", things.served("it", "first", SERVED).await?);
        let (began, before) = (now(), stage.cluster.audit()?.len());
        for change in 0.. {
            if began.elapsed() >= FULL {
                break;
            }
            let change = change.to_string();
            things.put("it", &change).await?;
            things.served("it", &change, SERVED).await?;
            sleep(Duration::from_secs(1)).await;
        }
        let (longest, renewals) = things.longest_between_renewals(before)?;
        println!("{renewals} renewals, at most {longest:.1?} apart");
        // Renewed in time for the term to go on; this is no test of how busy the machine is.
        ensure(longest < LEASE / 2, || format!("renewals {longest:?} apart"))
    })
    .await;
    Ok(())
}

/// Connections whose request never ends.
const UNFINISHED: usize = 300;
/// The endpoints answer again, at the latest.
const ANSWERS: Duration = Duration::from_secs(15);
/// A connection that says nothing is closed, at the latest.
const CLOSED: Duration = Duration::from_secs(25);

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_requests_delay_no_renewal_and_are_closed() -> Result<()> {
    play(Stage::set("unfinished", 1).await?, |stage| async {
        let things = Things::set(stage, 1).await?;
        let replica = things.led(PATIENCE, |_| true).await?;
        let (began, before) = (now(), stage.cluster.audit()?.len());
        let open = |_| async {
            let mut stream = TcpStream::connect(&replica.address).await?;
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: replica\r\nX-Unfinished: ").await?;
            std::io::Result::Ok(stream)
        };
        // A replica may refuse some of them: that is an answer too.
        let opened: Vec<_> = stream::iter(0..UNFINISHED).map(open).buffer_unordered(50).collect().await;
        let mut streams: Vec<_> = opened.into_iter().filter_map(Result::ok).collect();
        let opened = streams.len();
        let livez = replica.answers("/livez", 200, ANSWERS).await.map(|_| began.elapsed());
        let mut open = 0;
        for stream in &mut streams {
            let left = CLOSED.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
            let mut answer = Vec::new();
            // Closed with an answer, without one, or by a reset.
            open += usize::from(timeout(left, stream.read_to_end(&mut answer)).await.is_err());
        }
        let (longest, renewals) = things.longest_between_renewals(before)?;
        println!(
            "{opened} of {UNFINISHED} unfinished requests were taken, {open} are open after {:.1?}; {renewals} renewals, at most {longest:.1?} apart",
            began.elapsed()
        );
        println!("/livez answered after {:.1?}", livez?);
        ensure(longest <= LATE, || format!("renewals {longest:?} apart"))?;
        ensure(open == 0, || format!("{open} of {opened} connections without a whole request are open after {CLOSED:?}"))?;
        let livez = eventually("/livez answers", ANSWERS, || replica.get("/livez"), |(code, _)| *code == 200);
        livez.await.map(drop)
    })
    .await;
    Ok(())
}
