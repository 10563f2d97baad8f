//! What a replica shares with the world is full or busy: its log, its endpoints. Its Leases are renewed, its kinds reconciled.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use futures::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use leasehold_cluster::eventually;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

use crate::{
    lone::{Lone, Plan, Program},
    stage::{LEASE, PATIENCE, RETRY, Stage, ensure, play, tell},
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

/// The addresses that floods come from, as Pods have one each; the probes come from 127.0.0.1.
const FLOODERS: u8 = 8;
/// A flood lasts this long at least.
const FLOOD: Duration = Duration::from_secs(10);
/// What all floods together may cost, in bytes.
const COST: u64 = 32 << 20;
/// A probe is answered in this time on a busy machine; the kubelet waits for one second and tries three times.
const PROBED: Duration = Duration::from_secs(3);

/// A connection from an address of a flood; an error is an answer too.
async fn connect(number: usize, to: SocketAddr) -> std::io::Result<TcpStream> {
    let from = 2 + u8::try_from(number % usize::from(FLOODERS)).unwrap_or_default();
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, from], 0)))?;
    socket.connect(to).await
}

/// Opens connections, sends this on each, and keeps them until the flood is over. How many were opened.
async fn keep_open(clients: usize, to: SocketAddr, bytes: &[u8]) -> usize {
    let open = |number| async move {
        let mut stream = timeout(FLOOD, connect(number, to)).await.ok()?.ok()?;
        // What the server does not take is not waited for.
        let _ = timeout(Duration::from_secs(1), stream.write_all(bytes)).await;
        Some(stream)
    };
    let began = now();
    let streams: Vec<_> = stream::iter(0..clients).map(open).buffer_unordered(200).collect().await;
    sleep(FLOOD.saturating_sub(began.elapsed())).await;
    streams.into_iter().flatten().count()
}

/// Asks again and again, on connections that are kept as long as the server keeps them.
async fn ask_again(clients: usize, to: SocketAddr) -> usize {
    let answered = AtomicUsize::new(0);
    let ask = |number| {
        let answered = &answered;
        async move {
            let mut part = vec![0; 65536];
            while let Ok(mut stream) = connect(number, to).await {
                while stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.is_ok()
                    && matches!(stream.read(&mut part).await, Ok(1..))
                {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    let _over = timeout(FLOOD, futures::future::join_all((0..clients).map(ask))).await;
    answered.into_inner()
}

/// Heads that are large and never end, slow ones, idle connections, requests without a pause.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_every_sort_cost_little_and_probes_are_answered() -> Result<()> {
    play(Stage::set("floods", 1).await?, |stage| async {
        let things = Things::set(stage, 1).await?;
        let replica = things.led(PATIENCE, |_| true).await?;
        replica.answers("/metrics", 200, PATIENCE).await?;
        let (to, before) = (replica.address.parse()?, stage.cluster.audit()?.len());
        let (memory, most) = (replica.memory()?, AtomicUsize::new(0));
        let over = AtomicBool::new(false);
        let slowest = async {
            let mut slowest = Duration::ZERO;
            for number in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let path = if number % 5 == 4 { "/metrics" } else { "/readyz" };
                let asked = now();
                let (code, _) = replica.get(path).await?;
                ensure(code == 200, || format!("{path} answered {code}"))?;
                slowest = slowest.max(asked.elapsed());
                let grown = replica.memory()?.saturating_sub(memory);
                most.fetch_max(usize::try_from(grown)?, Ordering::Relaxed);
                sleep(Duration::from_millis(200)).await;
            }
            anyhow::Ok(slowest)
        };
        let floods = async {
            let large = [b"GET /livez HTTP/1.1\r\nhost: x\r\nx: ".as_slice(), &b"y".repeat(390_000)].concat();
            let unfinished = keep_open(1200, to, &large).await;
            let slow = keep_open(2000, to, b"GET /livez HTTP/1.1\r\nhost: x\r\nx: ").await;
            let idle = keep_open(4000, to, b"").await;
            let answered = ask_again(256, to).await;
            over.store(true, Ordering::Relaxed);
            (unfinished, slow, idle, answered)
        };
        let (slowest, (unfinished, slow, idle, answered)) = futures::future::join(slowest, floods).await;
        let slowest = slowest?;
        let (longest, renewals) = things.longest_between_renewals(before)?;
        let grown = most.into_inner() >> 10;
        tell(&format!(
            "{unfinished} large heads, {slow} slow ones, {idle} idle connections, {answered} answers: {grown} KiB more memory, \
             the slowest probe {slowest:.1?}; {renewals} renewals, at most {longest:.1?} apart"
        ));
        ensure(u64::try_from(grown)? << 10 < COST, || format!("{grown} KiB more memory"))?;
        ensure(slowest < PROBED, || format!("a probe took {slowest:?}"))?;
        ensure(longest < LEASE / 2, || format!("renewals {longest:?} apart"))?;
        let (_, metrics) = replica.get("/metrics").await?;
        for counted in ["connections_closed_total{server=\"endpoints\",limit=\"all\"}", "requests_refused_total{server=\"endpoints\",limit=\"pace\"}"] {
            ensure(metrics.contains(counted), || format!("no {counted} in {metrics}"))?;
        }
        Ok(())
    })
    .await;
    Ok(())
}
