//! The page as a client gets it, over a connection or without one.

use std::{net::SocketAddr, pin::pin};

use axum::http::Request;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tower::ServiceExt as _;

use super::*;
use crate::ops::{
    http::{self, Limits},
    status::ShardState,
};

fn status() -> Status {
    let status = Status::default();
    status.update_replica(|replica| {
        replica.identity = "a_1".to_owned();
        replica.instance = "prod".to_owned();
    });
    status.update("Widget.example.com", |shard| shard.lease = "w".to_owned());
    status
}

async fn get(router: &Router, path: &str) -> Response {
    router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap()
}

async fn text(answer: Response) -> String {
    String::from_utf8(axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap()
}

/// A page that asks for something from elsewhere would not be shown where there is no way out of the cluster.
#[tokio::test]
async fn the_page_is_of_this_binary_alone_and_no_script_but_its_own_runs() {
    let router = routes(status(), Metrics::default());
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page/page.css", "text/css; charset=utf-8"),
        ("/page/page.js", "text/javascript; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/page/data", "application/json"),
    ] {
        let answer = get(&router, path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), kind);
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        let text = text(answer).await.replace("http://www.w3.org/2000/svg", "");
        for word in
            ["http:", "https:", "//cdn", "@import", "innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "style=\""]
        {
            assert!(!text.contains(word), "{path} has {word}");
        }
    }
}

/// What the script asks for by id is in the page, and every field of the page that it reads is sent.
#[test]
fn the_script_finds_what_it_looks_for() {
    let (page, script) = (include_str!("index.html"), include_str!("page.js"));
    let wanted: Vec<_> = script.split("byId(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(wanted.len() > 15);
    for id in wanted {
        assert!(page.contains(&format!("id=\"{id}\"")), "the page has no {id}");
    }
}

#[tokio::test]
async fn what_is_sent_is_what_is_known() {
    let status = status();
    status.update("Widget.example.com", |shard| {
        (shard.state, shard.holder) = (ShardState::Blocked, None);
        shard.reason = Some("no CRD <script>alert(1)</script>".to_owned());
    });
    let router = routes(status, Metrics::default());
    let sent: serde_json::Value = serde_json::from_str(&text(get(&router, "/page/data").await).await).unwrap();
    let row = &sent["whole"]["kinds"]["Widget.example.com w"];
    assert_eq!((&row["state"], &row["verdict"]), (&json!("Blocked"), &json!("NotLed")), "{sent}");
    assert_eq!(row["reasons"][0]["replicas"], json!(["a"]));
    assert_eq!(sent["whole"]["head"]["instance"], "prod");
    let why = sent["whole"]["head"]["notReached"][0].as_str().unwrap();
    assert!(why.contains("does not see the Pods"), "{why}");
}

#[tokio::test]
async fn so_many_pages_are_open_and_no_more() {
    let router = routes(status(), Metrics::default());
    let mut open = Vec::new();
    for _ in 0..OPEN {
        let answer = get(&router, "/page/events").await;
        assert_eq!(answer.status(), StatusCode::OK);
        open.push(answer);
    }
    let refused = get(&router, "/page/events").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(text(refused).await.contains("16 pages are open"));
    // Without a stream nothing is kept from it.
    assert_eq!(get(&router, "/page/data").await.status(), StatusCode::OK);
    open.pop();
    assert_eq!(get(&router, "/page/events").await.status(), StatusCode::OK);
}

/// Events of a stream, as they come.
struct Events(axum::body::BodyDataStream);

impl Events {
    async fn next(&mut self) -> Option<String> {
        let part = futures::StreamExt::next(&mut self.0).await?;
        Some(String::from_utf8(part.unwrap().to_vec()).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn all_is_sent_at_first_then_what_changes_and_the_stream_ends_by_itself() {
    let status = status();
    let router = routes(status.clone(), Metrics::default());
    let answer = get(&router, "/page/events").await;
    assert_eq!(answer.headers()[header::CONNECTION], "close", "the next one has a whole connection's time again");
    let mut events = Events(answer.into_body().into_data_stream());
    let first = events.next().await.unwrap();
    assert!(first.starts_with("retry: 1000\nevent: whole\ndata: {"), "{first}");
    assert!(first.ends_with("}\n\n") && first.contains("Widget.example.com"), "{first}");
    status.update("Widget.example.com", |shard| shard.state = ShardState::CoolingDown);
    let changed = events.next().await.unwrap();
    assert!(changed.starts_with("event: change\n") && changed.contains("CoolingDown"), "{changed}");
    assert!(
        !changed.contains("\"head\"") && !changed.contains("\"lanes\""),
        "what has not changed is not sent: {changed}"
    );
    let beat = events.next().await.unwrap();
    assert!(beat.starts_with("event: beat\n"), "{beat}");
    let began = now();
    while events.next().await.is_some() {}
    assert!(now().duration_since(began) <= STREAM);
    assert!(STREAM < Limits::default().age);
}

/// A stop does not wait for those who look, and the last event is whole.
#[tokio::test]
async fn a_stop_ends_every_stream() {
    let listener = http::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let router = http::router(status(), Metrics::default());
    let mut server = pin!(http::serve(listener, router, Limits::default(), Metrics::default(), stop.cancelled()));
    let client = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /page/events HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut bytes = vec![0; 4096];
        let mut got = String::new();
        while !got.contains("event: whole") {
            let read = stream.read(&mut bytes).await.unwrap();
            got += &String::from_utf8_lossy(&bytes[..read]);
        }
        stop.cancel();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        got + &String::from_utf8_lossy(&rest)
    };
    let (got, ()) = timeout(Duration::from_secs(10), async { tokio::join!(client, &mut server) }).await.unwrap();
    assert!(got.ends_with("0\r\n\r\n"), "the stream has its end: {got}");
}
