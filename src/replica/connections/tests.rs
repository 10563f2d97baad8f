//! Against real sockets on this machine; the bounds are small ones.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    path::Path,
    pin::Pin,
};

use hyper_util::rt::TokioIo;
use kube::{Config, config::ExecConfig};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::{ServiceExt, service_fn};

use super::*;
use crate::{
    protocol::moment::Moment,
    replica::{clock::Clock, fence::Fence},
};

const SECOND: Duration = Duration::from_secs(1);

/// Long enough for what is only to happen, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(20);

const BOUNDS: Bounds = Bounds {
    connect: Duration::from_millis(200),
    unacknowledged: Duration::from_secs(8),
    silence: Duration::from_millis(200),
};

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

async fn connections(url: String, bounds: Bounds) -> Connections {
    Connections::load(Config::new(url.parse().unwrap()), bounds).await.unwrap()
}

fn fence() -> Fence {
    Fence::new("widget.example.com".to_owned(), None, Clock::system(), |_| ())
}

/// Accepts connections and answers on each with this, once it has read a request's head.
async fn serve(listener: TcpListener, answer: impl Fn(&str) -> String) {
    loop {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await.unwrap());
        }
        let text = String::from_utf8(head).unwrap();
        connection.write_all(answer(&text).as_bytes()).await.unwrap();
    }
}

/// Accepts connections, answers what comes first on each with this, and then says nothing and closes nothing.
async fn freeze(listener: TcpListener, answer: &str) {
    let mut kept = Vec::new();
    loop {
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.read_u8().await.unwrap();
        connection.write_all(answer.as_bytes()).await.unwrap();
        kept.push(connection);
    }
}

fn get(uri: &str) -> Request<Vec<u8>> {
    Request::get(uri).body(Vec::new()).unwrap()
}

/// How a request fails while the server does that.
async fn failure(server: impl Future<Output = ()>, client: &Client, uri: &str) -> String {
    tokio::select! {
        answer = tokio::time::timeout(PATIENCE, client.request_text(get(uri))) => {
            describe(&answer.expect("it fails in time").unwrap_err())
        }
        () = server => unreachable!(),
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_never_shakes_hands_is_given_up() {
    let (listener, address) = listen().await;
    let bounds = Bounds { silence: PATIENCE, ..BOUNDS };
    let connections = connections(format!("https://{address}"), bounds).await;
    let error = failure(freeze(listener, ""), &connections.client(), "/api").await;
    assert!(error.contains("no connection within 200ms"), "{error}");
}

#[tokio::test]
async fn a_watch_that_is_never_answered_fails() {
    let (listener, address) = listen().await;
    let connections = connections(format!("http://{address}"), BOUNDS).await;
    let fence = fence();
    let client = connections.client_behind(&fence.gate(), None);
    let error = failure(freeze(listener, ""), &client, "/api/v1/pods?watch=true").await;
    assert!(error.contains("the API server has been silent for 200ms"), "{error}");
}

#[tokio::test]
async fn a_body_that_stalls_fails() {
    let (listener, address) = listen().await;
    let connections = connections(format!("http://{address}"), BOUNDS).await;
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{";
    let error = failure(freeze(listener, half), &connections.client(), "/api/v1/pods").await;
    assert!(error.contains("the API server has been silent for 200ms"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_silent_from_the_last_byte_in_either_direction() {
    let (ours, mut theirs) = tokio::io::duplex(64);
    let bounds = Bounds { silence: 10 * SECOND, ..BOUNDS };
    let mut io = TokioIo::new(Silent::new(TokioIo::new(ours), bounds));
    for _ in 0..3 {
        tokio::time::advance(9 * SECOND).await;
        theirs.write_all(b"x").await.unwrap();
        assert_eq!(io.read_u8().await.unwrap(), b'x');
        tokio::time::advance(9 * SECOND).await;
        io.write_all(b"x").await.unwrap();
    }
    let clock = Clock::tokio();
    let began = clock.now();
    assert_eq!(io.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(clock.now().since(began), 10 * SECOND);
    theirs.write_all(b"x").await.unwrap();
    assert_eq!(io.read_u8().await.unwrap(), b'x', "what has come is read, however late");
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_no_watch_begin_in_time_and_those_of_watches_take_theirs() {
    let send = |uri: &'static str| {
        Bounded(service_fn(async |_: Request<()>| {
            tokio::time::sleep(READ_TIMEOUT + SECOND).await;
            Ok::<_, BoxError>(Response::new(()))
        }))
        .oneshot(Request::get(uri).body(()).unwrap())
    };
    send("/x?watch=true").await.unwrap();
    assert!(send("/x").await.is_err());
}

#[tokio::test]
async fn no_watch_gets_longer_than_its_connection_may_be_silent() {
    let asked = |uri: &'static str| async move {
        let echo =
            service_fn(
                |request: Request<()>| async move { Ok::<_, BoxError>(Response::new(request.uri().to_string())) },
            );
        Bounded(echo).oneshot(Request::get(uri).body(()).unwrap()).await.unwrap().into_body()
    };
    for (uri, becomes) in [
        ("/x?&watch=true&timeoutSeconds=290&resourceVersion=5", "/x?watch=true&resourceVersion=5&timeoutSeconds=14"),
        ("/x?watch=1", "/x?watch=1&timeoutSeconds=14"),
        ("/x?watch=true&timeoutSeconds=0", "/x?watch=true&timeoutSeconds=14"),
        ("/x?watch=true&timeoutSeconds=7", "/x?watch=true&timeoutSeconds=7"),
        (
            "/x?watch=true&timeoutSeconds=290&sendInitialEvents=true",
            "/x?watch=true&timeoutSeconds=290&sendInitialEvents=true",
        ),
        ("/x?timeoutSeconds=290", "/x?timeoutSeconds=290"),
        ("/x", "/x"),
    ] {
        assert_eq!(asked(uri).await, becomes);
    }
    assert!(Duration::from_secs(u64::from(WATCH_TIMEOUT)) < SILENCE && POOL_IDLE < SILENCE);
}

/// A connection as the connector opens it, and its other end.
async fn open(gate: Option<Gate>) -> (GatedIo<Silent>, TcpStream) {
    let (listener, address) = listen().await;
    // Of a size that the kernel does not raise: else it may hold all that the other kernel could not take.
    sockopt::set_socket_recv_buffer_size(&listener, 64 << 10).unwrap();
    let discard = gate.is_some();
    let dialed = Dialer::new(Bounds { silence: PATIENCE, ..BOUNDS }, discard)
        .oneshot(format!("http://{address}").parse().unwrap());
    let (ours, theirs) = tokio::join!(dialed, listener.accept());
    (GatedIo::new(ours.unwrap(), gate), theirs.unwrap().0)
}

#[tokio::test]
async fn the_kernel_is_told_when_to_give_up() {
    let fence = fence();
    for gate in [None, Some(fence.gate())] {
        let discards = gate.is_some().then_some(Duration::ZERO);
        let (io, _theirs) = open(gate).await;
        let socket = io.socket().socket();
        assert_eq!(sockopt::socket_linger(socket).unwrap(), discards);
        assert_eq!(sockopt::tcp_user_timeout(socket).unwrap(), 8000);
        assert!(sockopt::socket_keepalive(socket).unwrap());
        assert_eq!(sockopt::tcp_keepidle(socket).unwrap(), 5 * SECOND);
        assert_eq!(sockopt::tcp_keepintvl(socket).unwrap(), 5 * SECOND);
        assert_eq!(sockopt::tcp_keepcnt(socket).unwrap(), 2);
    }
}

#[tokio::test]
async fn the_kernel_gives_a_terms_bytes_up_when_the_term_ends_and_not_later() {
    let (fence, clock) = (fence(), Clock::system());
    let (mut io, _theirs) = open(Some(fence.gate())).await;
    let mut told = async || {
        std::future::poll_fn(|cx| hyper::rt::Write::poll_write(Pin::new(&mut io), cx, b"x")).await.unwrap();
        sockopt::tcp_user_timeout(io.socket().socket()).unwrap()
    };
    assert_eq!(told().await, 8000, "a standby has no end yet");
    fence.extend(clock.now() + 5 * SECOND);
    let millis = told().await;
    assert!((1..=5000).contains(&millis), "{millis}");
    fence.extend(clock.now() + 60 * SECOND);
    assert_eq!(told().await, 8000, "the term goes on");
}

#[tokio::test]
async fn what_the_kernel_still_buffers_is_discarded_when_a_terms_connection_is_dropped() {
    let fence = fence();
    fence.extend(Moment::NEVER);
    let (mut io, theirs) = open(Some(fence.gate())).await;
    let chunk = vec![0; 64 << 10];
    let mut sent = 0;
    // Until nothing more fits: neither in the peer's kernel, which does not read, nor in ours.
    std::future::poll_fn(|cx| {
        loop {
            match hyper::rt::Write::poll_write(Pin::new(&mut io), cx, &chunk) {
                Poll::Ready(written) => sent += written.unwrap(),
                Poll::Pending => return Poll::Ready(()),
            }
        }
    })
    .await;
    drop(io);
    let mut theirs = theirs.into_std().unwrap();
    theirs.set_nonblocking(false).unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut received = Vec::new();
    let end = theirs.read_to_end(&mut received).expect_err("a reset, not an orderly end");
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(received.len() < sent, "all {sent} bytes have landed");
}

/// A configuration whose plugin gives the lines of a FIFO as tokens, one each time, and waits for each; and that FIFO.
fn plugin(url: &str, folder: &Path) -> (Config, File) {
    let fifo = folder.join("tokens");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let script = r#"read token < "$0"; echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"expirationTimestamp": "2999-01-01T00:00:00Z", "token": "'"$token"'"}}'"#;
    let mut config = Config::new(url.parse().unwrap());
    config.auth_info.exec = Some(
        serde_json::from_value::<ExecConfig>(serde_json::json!({
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "sh",
            "args": ["-c", script, fifo],
            "interactiveMode": "Never",
        }))
        .unwrap(),
    );
    // Opened for both, so that neither a write nor the plugin finds the other end missing.
    (config, File::options().read(true).write(true).open(fifo).unwrap())
}

/// Answers with the token that it was sent, and with 401 to `old`.
fn show_token(head: &str) -> String {
    let token = head.lines().find_map(|line| line.strip_prefix("authorization: Bearer ")).unwrap_or("none");
    let status = if token == "old" { "401 Unauthorized" } else { "200 OK" };
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{token}", token.len())
}

#[tokio::test]
async fn a_plugin_that_takes_its_time_delays_neither_the_making_of_a_client_nor_a_request() {
    let (listener, address) = listen().await;
    let folder = tempfile::tempdir().unwrap();
    let (config, mut tokens) = plugin(&format!("http://{address}"), folder.path());
    let bounds = Bounds { connect: PATIENCE, silence: PATIENCE, ..BOUNDS };
    tokens.write_all(b"first\n").unwrap();
    let connections = Connections::load(config, bounds).await.unwrap();
    let test = async {
        let renewing = connections.refresh(true);
        tokio::pin!(renewing);
        // The plugin runs from now on, until it is given something.
        assert!(futures::poll!(&mut renewing).is_pending());
        let fence = fence();
        for client in [connections.client(), connections.client_behind(&fence.gate(), None)] {
            assert_eq!(client.request_text(get("/api")).await.unwrap(), "first");
        }
        assert!(futures::poll!(&mut renewing).is_pending(), "it still runs");
        tokens.write_all(b"second\n").unwrap();
        renewing.await.unwrap();
        assert_eq!(connections.client().request_text(get("/api")).await.unwrap(), "second");
    };
    tokio::select! {
        done = tokio::time::timeout(PATIENCE, test) => done.expect("nothing waits for the plugin"),
        () = serve(listener, show_token) => {}
    }
}

#[tokio::test]
async fn credentials_that_are_not_accepted_are_made_anew() {
    let (listener, address) = listen().await;
    let folder = tempfile::tempdir().unwrap();
    let (config, mut tokens) = plugin(&format!("http://{address}"), folder.path());
    let bounds = Bounds { connect: PATIENCE, silence: PATIENCE, ..BOUNDS };
    tokens.write_all(b"old\nnew\n").unwrap();
    let connections = Connections::load(config, bounds).await.unwrap();
    let client = connections.client();
    let test = async {
        assert!(client.request_text(get("/api")).await.is_err());
        while connections.credentials().headers["authorization"] != "Bearer new" {
            tokio::task::yield_now().await;
        }
        assert_eq!(client.request_text(get("/api")).await.unwrap(), "new");
    };
    tokio::select! {
        done = tokio::time::timeout(PATIENCE, test) => done.expect("the plugin is asked again"),
        () = connections.keep_fresh() => {}
        () = serve(listener, show_token) => {}
    }
}

#[tokio::test]
async fn tokens_in_files_and_added_headers_are_ready_made_and_a_proxy_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "from a file").unwrap();
    let mut config = Config::new("http://127.0.0.1:1".parse().unwrap());
    config.auth_info.token_file = Some(token.display().to_string());
    config.auth_info.impersonate = Some("jane".to_owned());
    let loaded = Connections::load(config.clone(), BOUNDS).await.unwrap();
    std::fs::remove_file(token).unwrap();
    let headers = &loaded.credentials().headers;
    assert_eq!(headers["authorization"], "Bearer from a file");
    assert_eq!(headers["impersonate-user"], "jane");
    config.proxy_url = Some("http://proxy".parse().unwrap());
    let refused = Connections::load(config, BOUNDS).await.unwrap_err();
    assert!(describe(&refused).contains("remove proxy-url"), "{refused}");
}

#[test]
fn a_dead_connection_is_given_up_before_the_renew_deadline() {
    let timings = |renew| Timings {
        lease_duration: 90 * SECOND,
        renew_deadline: Duration::from_secs(renew),
        retry_period: SECOND,
        request_timeout: SECOND,
    };
    assert_eq!(Bounds::new(&timings(10)).unacknowledged, 8 * SECOND);
    assert_eq!(Bounds::new(&timings(60)).unacknowledged, UNACKNOWLEDGED);
    assert_eq!(Bounds::new(&timings(5)).unacknowledged, 4 * SECOND);
}
