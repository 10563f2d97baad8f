//! Startup, readiness and liveness probes of one running container.

use anyhow::{Context, Result, bail};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::time::Duration;
use tokio::net::TcpStream;

/// What a round of probing found.
pub(crate) enum Finding {
    /// The startup probe has succeeded, or there is none.
    Started,
    /// The readiness probe's verdict has changed.
    Ready(bool),
    /// One probe failed; for an event.
    Failed {
        /// `Startup`, `Readiness` or `Liveness`.
        probe: &'static str,
        /// Why.
        message: String,
    },
}

/// Probes until a startup or liveness probe gives the container up, and returns which and why.
/// Without either it never returns; the caller drops it when the process ends.
pub(crate) async fn probe(
    container: &Container,
    address: &str,
    found: impl Fn(Finding) + Send + Sync,
    stalled: impl Fn() -> bool + Send + Sync,
) -> (String, Option<i64>) {
    // The kubelet of a machine that stands still asks nothing.
    let next = |probe: &Probe| {
        let (period, stalled) = (period(probe), &stalled);
        async move {
            tokio::time::sleep(period).await;
            while stalled() {
                tokio::time::sleep(period).await;
            }
        }
    };
    if let Some(startup) = &container.startup_probe {
        let mut failures = 0;
        delay(startup).await;
        loop {
            match once(startup, container, address).await {
                Ok(()) => break,
                Err(error) => {
                    failures += 1;
                    found(Finding::Failed { probe: "Startup", message: format!("{error:#}") });
                    if failures >= startup.failure_threshold.unwrap_or(3) {
                        return (
                            format!("Container {} failed startup probe, will be restarted", container.name),
                            startup.termination_grace_period_seconds,
                        );
                    }
                }
            }
            next(startup).await;
        }
    }
    found(Finding::Started);
    if container.readiness_probe.is_none() {
        found(Finding::Ready(true));
    }
    let readiness = async {
        let Some(readiness) = &container.readiness_probe else { return std::future::pending::<()>().await };
        let (mut ready, mut streak) = (false, 0);
        delay(readiness).await;
        loop {
            let outcome = once(readiness, container, address).await;
            if let Err(error) = &outcome {
                found(Finding::Failed { probe: "Readiness", message: format!("{error:#}") });
            }
            streak = if outcome.is_ok() == ready { 0 } else { streak + 1 };
            let threshold =
                if ready { readiness.failure_threshold.unwrap_or(3) } else { readiness.success_threshold.unwrap_or(1) };
            if streak >= threshold {
                ready = !ready;
                streak = 0;
                found(Finding::Ready(ready));
            }
            next(readiness).await;
        }
    };
    let liveness = async {
        let Some(liveness) = &container.liveness_probe else { return std::future::pending().await };
        let mut failures = 0;
        delay(liveness).await;
        loop {
            match once(liveness, container, address).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    found(Finding::Failed { probe: "Liveness", message: format!("{error:#}") });
                    if failures >= liveness.failure_threshold.unwrap_or(3) {
                        return (
                            format!("Container {} failed liveness probe, will be restarted", container.name),
                            liveness.termination_grace_period_seconds,
                        );
                    }
                }
            }
            next(liveness).await;
        }
    };
    tokio::select! {
        () = readiness => std::future::pending().await,
        gave_up = liveness => gave_up,
    }
}

async fn once(probe: &Probe, container: &Container, address: &str) -> Result<()> {
    let attempt = async {
        if let Some(action) = &probe.http_get {
            http_get(action, container, address).await
        } else if let Some(action) = &probe.tcp_socket {
            tcp_socket(action, container, address).await
        } else if probe.exec.is_some() {
            bail!("the process kubelet has no exec probes")
        } else {
            bail!("the process kubelet does not know this kind of probe")
        }
    };
    let limit = Duration::from_secs(seconds(probe.timeout_seconds, 1));
    tokio::time::timeout(limit, attempt).await.with_context(|| format!("no answer within {limit:?}"))?
}

async fn http_get(action: &HTTPGetAction, container: &Container, address: &str) -> Result<()> {
    if action.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
        bail!("the process kubelet probes plain HTTP only");
    }
    let port = port(&action.port, container)?;
    let host = action.host.as_deref().unwrap_or(address);
    let path = action.path.as_deref().unwrap_or("/");
    let stream =
        TcpStream::connect((host, port)).await.with_context(|| format!("Get \"http://{host}:{port}{path}\""))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = http::Request::get(path)
        .header(http::header::HOST, format!("{host}:{port}"))
        .header(http::header::USER_AGENT, "kube-probe/1.37")
        .header(http::header::CONNECTION, "close");
    for header in action.http_headers.iter().flatten() {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let answer = async { Ok::<_, anyhow::Error>(sender.send_request(request).await?.status()) };
    let drive = async {
        // The answer, or its absence, is what counts.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    let status = tokio::select! {
        status = answer => status?,
        () = drive => bail!("unreachable"),
    };
    if !(200..400).contains(&status.as_u16()) {
        bail!("HTTP probe failed with statuscode: {}", status.as_u16());
    }
    Ok(())
}

async fn tcp_socket(action: &TCPSocketAction, container: &Container, address: &str) -> Result<()> {
    let port = port(&action.port, container)?;
    TcpStream::connect((action.host.as_deref().unwrap_or(address), port)).await?;
    Ok(())
}

fn port(port: &IntOrString, container: &Container) -> Result<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                container
                    .ports
                    .iter()
                    .flatten()
                    .find(|port| port.name.as_deref() == Some(name))
                    .with_context(|| format!("no port is named {name:?}"))?
                    .container_port
            }
        },
    };
    u16::try_from(number).with_context(|| format!("{number} is no port"))
}

async fn delay(probe: &Probe) {
    tokio::time::sleep(Duration::from_secs(seconds(probe.initial_delay_seconds, 0))).await;
}

fn period(probe: &Probe) -> Duration {
    Duration::from_secs(seconds(probe.period_seconds, 10))
}

fn seconds(value: Option<i32>, default: u64) -> u64 {
    value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    #[tokio::test]
    async fn readiness_follows_the_answer_and_liveness_gives_up() {
        static HEALTHY: AtomicBool = AtomicBool::new(true);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let status = if HEALTHY.load(Ordering::SeqCst) { "200 OK" } else { "503 Service Unavailable" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let check = json!({"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 1, "failureThreshold": 1});
        let container: Container = serde_json::from_value(json!({
            "name": "c",
            "ports": [{"name": "http", "containerPort": port}],
            "startupProbe": check,
            "readinessProbe": check,
            "livenessProbe": {"httpGet": {"port": port}, "periodSeconds": 1, "failureThreshold": 4},
        }))
        .unwrap();
        let seen = Mutex::new(Vec::new());
        let found = |finding| {
            let mut seen = seen.lock().unwrap();
            match finding {
                Finding::Started => seen.push("started".to_owned()),
                Finding::Ready(ready) => {
                    HEALTHY.store(false, Ordering::SeqCst);
                    seen.push(format!("ready {ready}"));
                }
                Finding::Failed { probe, message } => {
                    assert!(message.contains("503"), "{message}");
                    seen.push(probe.to_owned());
                }
            }
        };
        let (message, _) =
            tokio::time::timeout(Duration::from_secs(20), probe(&container, "127.0.0.1", found, || false))
                .await
                .unwrap();
        assert!(message.contains("failed liveness probe"), "{message}");
        let seen = seen.into_inner().unwrap();
        assert_eq!(seen[..2], ["started", "ready true"], "{seen:?}");
        assert!(seen.contains(&"ready false".to_owned()), "{seen:?}");
    }
}
