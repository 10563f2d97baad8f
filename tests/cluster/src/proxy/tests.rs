//! The proxy in front of a small server that counts what reaches it. No control plane.

use super::*;
use http_body_util::Empty;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

/// Long enough for loopback on a busy machine; only spent where silence is expected.
const SILENT: Duration = Duration::from_millis(150);
const SOON: Duration = Duration::from_secs(5);

/// Answers `GET …?watch=true` with what `events` sends, and everything else with ten bytes.
struct Server {
    applied: Arc<AtomicUsize>,
    events: mpsc::UnboundedSender<&'static str>,
    proxy: FaultProxy,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let applied = Arc::new(AtomicUsize::new(0));
        let (events, receiver) = mpsc::unbounded_channel();
        let receiver = Arc::new(Mutex::new(Some(receiver)));
        let count = applied.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (count, receiver) = (count.clone(), receiver.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    count.fetch_add(1, Ordering::SeqCst);
                    let body = if Target::of(&request).verb == "WATCH" {
                        let events = receiver.lock().unwrap().take().unwrap();
                        let frames = stream::unfold(events, |mut events| async move {
                            let event: &str = events.recv().await?;
                            Some((Ok::<_, anyhow::Error>(Frame::data(Bytes::from(event))), events))
                        });
                        BodyExt::boxed_unsync(StreamBody::new(frames))
                    } else {
                        BodyExt::boxed_unsync(Full::from("0123456789").map_err(|never| match never {}))
                    };
                    async { Ok::<_, anyhow::Error>(Response::new(body)) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        let proxy = FaultProxy::start(Upstream::Plain(address), None).await.unwrap();
        Self { applied, events, proxy }
    }

    async fn connect(&self) -> SendRequest<Empty<Bytes>> {
        let address = self.proxy.url().trim_start_matches("http://").to_owned();
        let (sender, connection) = handshake(TokioIo::new(TcpStream::connect(address).await.unwrap())).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    fn applied(&self) -> usize {
        self.applied.load(Ordering::SeqCst)
    }
}

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/n/leases/a";
const WATCH: &str = "/apis/coordination.k8s.io/v1/leases?watch=true";

fn request(method: &str, path: &str) -> Request<Empty<Bytes>> {
    Request::builder().method(method).uri(path).header("host", "test").body(Empty::new()).unwrap()
}

async fn body(sender: &mut SendRequest<Empty<Bytes>>, method: &str, path: &str) -> Result<Bytes> {
    let answer = sender.send_request(request(method, path)).await?;
    Ok(answer.into_body().collect().await?.to_bytes())
}

async fn event(body: &mut Incoming) -> Bytes {
    body.frame().await.unwrap().unwrap().into_data().unwrap()
}

#[test]
fn targets() {
    for (method, path, verb, resource) in [
        ("GET", "/api/v1/pods", "GET", "pods"),
        ("GET", "/api/v1/pods?watch=true&x=1", "WATCH", "pods"),
        ("PUT", LEASE, "PUT", "leases"),
        ("PATCH", "/apis/g/v1/namespaces/n/widgets/w/status", "PATCH", "widgets/status"),
        ("PATCH", "/apis/g/v1/widgets/w/status", "PATCH", "widgets/status"),
        ("GET", "/api/v1/namespaces/n", "GET", "namespaces"),
        ("PUT", "/api/v1/namespaces/n/finalize", "PUT", "namespaces/finalize"),
        ("GET", "/readyz", "GET", ""),
        ("GET", "/apis/g/v1", "GET", ""),
    ] {
        let target = Target::of(&request(method, path));
        assert_eq!((target.verb.as_str(), target.resource.as_str()), (verb, resource), "{method} {path}");
    }
}

#[test]
fn rules_match_what_they_name() {
    let put = Target::of(&request("PUT", LEASE));
    let status = Target::of(&request("PATCH", "/apis/g/v1/widgets/w/status"));
    for (rule, target, expected) in [
        (Rule::new(Fault::Drop), &put, true),
        (Rule::new(Fault::Drop).verbs(&["put"]).resource("leases").path("/a"), &put, true),
        (Rule::new(Fault::Drop).verbs(&["GET"]), &put, false),
        (Rule::new(Fault::Drop).writes(), &put, true),
        (Rule::new(Fault::Drop).resource("pods"), &put, false),
        (Rule::new(Fault::Drop).path("/b"), &put, false),
        (Rule::new(Fault::Drop).resource("widgets"), &status, true),
        (Rule::new(Fault::Drop).resource("widgets/status"), &status, true),
        (Rule::new(Fault::Drop).resource("widgets/scale"), &status, false),
    ] {
        assert_eq!(rule.matches(target), expected, "{rule:?} {target:?}");
    }
}

#[tokio::test]
async fn passes_and_counts() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    assert_eq!(body(&mut client, "PUT", LEASE).await.unwrap(), "0123456789");
    assert_eq!(body(&mut client, "PUT", LEASE).await.unwrap(), "0123456789");
    assert_eq!((server.proxy.count("PUT", "leases"), server.applied()), (2, 2));
}

#[tokio::test]
async fn a_status_is_given_as_often_as_asked() {
    let server = Server::start().await;
    let after = Some(Duration::from_secs(3));
    server.proxy.add(Rule::new(Fault::Status { code: 429, retry_after: after }).times(1));
    let mut client = server.connect().await;
    let refused = client.send_request(request("GET", LEASE)).await.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"3".parse().unwrap()));
    refused.into_body().collect().await.unwrap();
    assert_eq!(server.applied(), 0);
    body(&mut client, "GET", LEASE).await.unwrap();
}

#[tokio::test]
async fn a_drop_closes_before_anything_is_applied() {
    let server = Server::start().await;
    server.proxy.add(Rule::new(Fault::Drop).writes());
    body(&mut server.connect().await, "GET", LEASE).await.unwrap();
    body(&mut server.connect().await, "PUT", LEASE).await.unwrap_err();
    assert_eq!(server.applied(), 1);
}

#[tokio::test]
async fn delays_add_up() {
    let server = Server::start().await;
    server.proxy.add(Rule::new(Fault::Delay(Duration::from_millis(40))));
    server.proxy.add(Rule::new(Fault::Delay(Duration::from_millis(40))));
    let started = Instant::now();
    body(&mut server.connect().await, "GET", LEASE).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(80));
}

#[tokio::test]
async fn an_answer_is_cut() {
    let server = Server::start().await;
    let rule = server.proxy.add(Rule::new(Fault::CutMidResponse(4)));
    let answer = server.connect().await.send_request(request("GET", LEASE)).await.unwrap();
    let mut answer = answer.into_body();
    assert_eq!(event(&mut answer).await, "0123");
    assert!(answer.frame().await.unwrap().is_err());
    server.proxy.remove(rule);
    assert_eq!(body(&mut server.connect().await, "GET", LEASE).await.unwrap(), "0123456789");
}

#[tokio::test]
async fn an_unanswered_write_is_applied() {
    let server = Server::start().await;
    server.proxy.add(Rule::new(Fault::AppliedButUnanswered(Silence::Close)).times(1));
    body(&mut server.connect().await, "PUT", LEASE).await.unwrap_err();
    assert_eq!(server.applied(), 1);
    server.proxy.add(Rule::new(Fault::AppliedButUnanswered(Silence::Hang)).times(1));
    timeout(SILENT, body(&mut server.connect().await, "PUT", LEASE)).await.unwrap_err();
    assert_eq!(server.applied(), 2);
}

#[tokio::test]
async fn a_black_hole_holds_requests_and_watches_until_it_is_removed() {
    let server = Server::start().await;
    let mut watching = server.connect().await;
    let mut watch = watching.send_request(request("GET", WATCH)).await.unwrap().into_body();
    server.events.send("first").unwrap();
    assert_eq!(event(&mut watch).await, "first");

    let rule = server.proxy.add(Rule::new(Fault::BlackHole).resource("leases"));
    server.events.send("second").unwrap();
    timeout(SILENT, watch.frame()).await.unwrap_err();
    let mut client = server.connect().await;
    let mut put = std::pin::pin!(body(&mut client, "PUT", LEASE));
    timeout(SILENT, &mut put).await.unwrap_err();
    assert_eq!(server.applied(), 1);

    server.proxy.remove(rule);
    assert_eq!(timeout(SOON, event(&mut watch)).await.unwrap(), "second");
    timeout(SOON, put).await.unwrap().unwrap();
    assert_eq!(server.applied(), 2);
}

#[tokio::test]
async fn a_partition_stops_open_connections_and_heals() {
    let server = Server::start().await;
    let mut watching = server.connect().await;
    let mut watch = watching.send_request(request("GET", WATCH)).await.unwrap().into_body();
    server.events.send("first").unwrap();
    assert_eq!(event(&mut watch).await, "first");
    let mut client = server.connect().await;
    body(&mut client, "GET", LEASE).await.unwrap();

    server.proxy.partition();
    server.events.send("second").unwrap();
    timeout(SILENT, watch.frame()).await.unwrap_err();
    let mut put = std::pin::pin!(body(&mut client, "PUT", LEASE));
    timeout(SILENT, &mut put).await.unwrap_err();
    assert_eq!(server.applied(), 2);

    server.proxy.heal();
    assert_eq!(timeout(SOON, event(&mut watch)).await.unwrap(), "second");
    timeout(SOON, put).await.unwrap().unwrap();
    assert_eq!(server.applied(), 3);
}

#[tokio::test]
async fn a_freeze_silences_open_connections_for_ever_and_no_new_one() {
    let server = Server::start().await;
    let mut watching = server.connect().await;
    let mut watch = watching.send_request(request("GET", WATCH)).await.unwrap().into_body();
    server.events.send("first").unwrap();
    assert_eq!(event(&mut watch).await, "first");
    let mut client = server.connect().await;
    body(&mut client, "GET", LEASE).await.unwrap();

    server.proxy.freeze();
    server.proxy.heal();
    server.events.send("second").unwrap();
    timeout(SILENT, watch.frame()).await.unwrap_err();
    timeout(SILENT, body(&mut client, "PUT", LEASE)).await.unwrap_err();
    assert_eq!(server.applied(), 2);
    timeout(SOON, body(&mut server.connect().await, "PUT", LEASE)).await.unwrap().unwrap();
    assert_eq!(server.applied(), 3);
}

#[tokio::test]
async fn a_watch_lags_and_keeps_its_pace() {
    let server = Server::start().await;
    let mut watching = server.connect().await;
    let mut watch = watching.send_request(request("GET", WATCH)).await.unwrap().into_body();
    server.events.send("first").unwrap();
    assert_eq!(event(&mut watch).await, "first");

    let lag = Duration::from_millis(300);
    server.proxy.add(Rule::new(Fault::Lag(lag)).verbs(&["WATCH"]));
    let started = Instant::now();
    for sent in ["second", "third", "fourth"] {
        server.events.send(sent).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // One after the other they would take three times as long.
    assert_eq!(event(&mut watch).await, "second");
    assert!(started.elapsed() >= lag);
    assert_eq!(event(&mut watch).await, "third");
    assert_eq!(event(&mut watch).await, "fourth");
    assert!(started.elapsed() < 2 * lag, "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_opaque_proxy_passes_bytes_on_and_freezes() {
    let inner = Server::start().await;
    let address = inner.proxy.url().trim_start_matches("http://").parse().unwrap();
    let proxy = FaultProxy::start(Upstream::Opaque(address), None).await.unwrap();
    let connect = || async {
        let address = proxy.url().trim_start_matches("https://").to_owned();
        let (sender, connection) = handshake(TokioIo::new(TcpStream::connect(address).await.unwrap())).await.unwrap();
        tokio::spawn(connection);
        sender
    };
    let mut old: SendRequest<Empty<Bytes>> = connect().await;
    assert_eq!(body(&mut old, "GET", LEASE).await.unwrap(), "0123456789");
    proxy.freeze();
    timeout(SILENT, body(&mut old, "PUT", LEASE)).await.unwrap_err();
    timeout(SOON, body(&mut connect().await, "PUT", LEASE)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_gives_up_does_not_recall_an_unanswered_write() {
    let server = Server::start().await;
    server.proxy.add(Rule::new(Fault::Delay(SILENT)));
    server.proxy.add(Rule::new(Fault::AppliedButUnanswered(Silence::Hang)));
    let mut client = server.connect().await;
    timeout(SILENT / 3, body(&mut client, "PUT", LEASE)).await.unwrap_err();
    let started = Instant::now();
    while server.applied() == 0 && started.elapsed() < SOON {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.applied(), 1);
}

#[tokio::test]
async fn tls_is_ended_and_verified_with_the_clusters_authority() {
    let authority = crate::certificates::Authority::new().unwrap();
    let certificate = authority.issue(&["127.0.0.1"]).unwrap();
    let inner = Server::start().await;
    let address = inner.proxy.url().trim_start_matches("http://").parse().unwrap();
    let outer = FaultProxy::start(Upstream::Plain(address), Some(certificate.server().unwrap())).await.unwrap();
    let address = outer.url().trim_start_matches("https://").parse().unwrap();
    let trusting = crate::certificates::client(authority.der()).unwrap();
    let through = FaultProxy::start(Upstream::Tls { address, client: trusting }, None).await.unwrap();
    let doubting = crate::certificates::client(crate::certificates::Authority::new().unwrap().der()).unwrap();
    let refused = FaultProxy::start(Upstream::Tls { address, client: doubting }, None).await.unwrap();
    let get = |proxy: &FaultProxy| {
        let address = proxy.url().trim_start_matches("http://").to_owned();
        async move {
            let (mut sender, connection) = handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
            tokio::spawn(connection);
            body(&mut sender, "GET", LEASE).await
        }
    };
    assert_eq!(get(&through).await.unwrap(), "0123456789");
    get(&refused).await.unwrap_err();
}
