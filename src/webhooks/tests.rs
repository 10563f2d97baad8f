//! Reviews, certificates, their rotation, and what a client may cost.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response, StatusCode};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Client, client::Body};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    certificate::{Good, Pair, Unfit, judge, make},
    issuer::trust,
    review::{Answer, Reviews, Route},
    rotation::{Contents, Held, Step, Why, renewed, retired, step},
    *,
};

/// The rule of a webhook in these tests: what an object asks for by its name.
struct Widgets;

impl Webhook for Widgets {
    fn default<'a>(&'a self, _: &'a Asked<'_>, object: &'a mut Value) -> BoxFuture<'a, Result<(), Denied>> {
        object["spec"]["size"] = json!(3);
        async { Ok(()) }.boxed()
    }

    fn validate<'a>(&'a self, asked: &'a Asked<'_>) -> BoxFuture<'a, Result<Vec<String>, Denied>> {
        let name = asked.request.name.clone();
        async move {
            match name.as_str() {
                "denied" => Err(Denied::new("spec.size: too large")),
                "panics" => panic!("as a test wants it"),
                "slow" => pending().await,
                "warned" => Ok(vec!["take care".to_owned()]),
                _ => Ok(Vec::new()),
            }
        }
        .boxed()
    }

    fn convert(&self, mut object: Value, _: &str, to: &str) -> Result<Value, String> {
        if object["metadata"]["name"] == "panics" {
            panic!("as a test wants it");
        }
        if to == "v3" {
            return Err("there is no v3".to_owned());
        }
        object["apiVersion"] = json!(format!("example.com/{to}"));
        Ok(object)
    }
}

fn no_api_server() -> Client {
    let service = tower::service_fn(|_: Request<Body>| async {
        Ok::<_, std::convert::Infallible>(Response::builder().status(500).body(Body::empty()).unwrap())
    });
    Client::new(service, "default")
}

fn reviews() -> Reviews {
    let hook: Arc<dyn Webhook> = Arc::new(Widgets);
    let hooks = BTreeMap::from([(("example.com".to_owned(), "Widget".to_owned()), hook)]);
    Reviews::new(hooks, no_api_server(), Duration::from_secs(4))
}

fn admission(kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "name": name, "operation": "CREATE", "userInfo": {"username": "eve"},
            "kind": {"group": "example.com", "version": "v1", "kind": kind},
            "resource": {"group": "example.com", "version": "v1", "resource": "widgets"},
            "object": {"apiVersion": "example.com/v1", "kind": kind, "metadata": {"name": name}, "spec": {}},
            "oldObject": null, "dryRun": true, "options": null,
        },
    })
}

async fn asked(route: Route, body: &[u8]) -> (StatusCode, Value, &'static str) {
    let Answer { status, body, outcome } = reviews().answer(route, body).await;
    (status, serde_json::from_slice(&body).unwrap(), outcome)
}

async fn admitted(route: Route, kind: &str, name: &str) -> Value {
    let (status, review, _) = asked(route, admission(kind, name).to_string().as_bytes()).await;
    assert_eq!((status, &review["kind"]), (StatusCode::OK, &json!("AdmissionReview")));
    assert_eq!(review["response"]["uid"], "u-1");
    review["response"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_request_is_allowed_refused_or_defaulted_and_no_webhook_fails_without_words() {
    assert_eq!(admitted(Route::Validate, "Widget", "fine").await["allowed"], true);
    assert_eq!(admitted(Route::Validate, "Widget", "warned").await["warnings"], json!(["take care"]));
    for (kind, name, code, says) in [
        ("Widget", "denied", 403, "spec.size: too large"),
        ("Widget", "panics", 500, "panicked"),
        ("Widget", "slow", 504, "not answered within 4 s"),
        ("Gadget", "x", 404, "no webhook here answers for Gadget.example.com, but for Widget.example.com"),
    ] {
        let response = admitted(Route::Validate, kind, name).await;
        assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(code)), "{response}");
        assert!(response["status"]["message"].as_str().unwrap().contains(says), "{response}");
    }
    let response = admitted(Route::Mutate, "Widget", "fine").await;
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch: Vec<u8> = serde_json::from_value(response["patch"].clone())
        .or_else(|_| {
            let text: k8s_openapi::ByteString = serde_json::from_value(response["patch"].clone())?;
            Ok::<_, serde_json::Error>(text.0)
        })
        .unwrap();
    let patch: Value = serde_json::from_slice(&patch).unwrap();
    assert_eq!(patch, json!([{"op": "add", "path": "/spec/size", "value": 3}]));
}

#[tokio::test]
async fn what_is_no_review_is_answered_with_one() {
    let mut v2 = admission("Widget", "x");
    v2["apiVersion"] = json!("admission.k8s.io/v2");
    let mut empty = admission("Widget", "x");
    empty["request"] = json!(null);
    let convert = |kind: &str, mut request: Value| {
        if request.is_object() {
            request["desiredAPIVersion"] = json!("example.com/v2");
        }
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": kind, "request": request}).to_string()
    };
    for (route, body, says) in [
        (Route::Validate, "{".to_owned(), "this is no AdmissionReview"),
        (Route::Mutate, "[]".to_owned(), "this is no AdmissionReview"),
        (Route::Validate, "\u{0}".to_owned(), "this is no AdmissionReview"),
        (Route::Validate, v2.to_string(), "expected AdmissionReview of admission.k8s.io/v1, found AdmissionReview of"),
        (Route::Validate, empty.to_string(), "has no request"),
        (Route::Validate, json!({"request": {"uid": "u-1"}}).to_string(), "this is no AdmissionReview"),
        (Route::Convert, "{".to_owned(), "this is no ConversionReview"),
        (
            Route::Convert,
            json!({"apiVersion": "a", "kind": "b"}).to_string(),
            "expected ConversionReview of apiextensions",
        ),
        (Route::Convert, convert("", json!({"uid": "u-1", "objects": []})), "v1, found  of apiextensions.k8s.io/v1"),
        (Route::Convert, convert("ConversionReview", json!(null)), "has no request"),
    ] {
        let (status, review, outcome) = asked(route, body.as_bytes()).await;
        assert_eq!((status, outcome), (StatusCode::BAD_REQUEST, "invalid"), "{body}");
        let kind = if route == Route::Convert { "ConversionReview" } else { "AdmissionReview" };
        assert_eq!(review["kind"], kind, "{review}");
        let status =
            if route == Route::Convert { &review["response"]["result"] } else { &review["response"]["status"] };
        assert!(status["message"].as_str().unwrap().contains(says), "{review}");
        if body.contains("u-1") && !body.contains("v2") {
            assert_eq!(review["response"]["uid"], "u-1");
        }
    }
}

#[tokio::test]
async fn objects_are_converted_all_or_none() {
    let object = |version: &str, kind: &str, name: &str| json!({"apiVersion": format!("example.com/{version}"), "kind": kind, "metadata": {"name": name}});
    let review = |to: &str, objects: Vec<Value>| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "request": {"uid": "u-2", "desiredAPIVersion": to, "objects": objects}})
            .to_string()
    };
    let body = review("example.com/v2", vec![object("v1", "Widget", "a"), object("v2", "Widget", "b")]);
    let (status, answer, _) = asked(Route::Convert, body.as_bytes()).await;
    assert_eq!((status, &answer["response"]["result"]["status"]), (StatusCode::OK, &json!("Success")));
    let converted = json!([object("v2", "Widget", "a"), object("v2", "Widget", "b")]);
    assert_eq!(answer["response"]["convertedObjects"], converted);
    for (to, bad, says) in [
        ("example.com/v2", object("v1", "Gadget", "b"), "Gadget b: no webhook here converts Gadget.example.com"),
        ("example.org/v2", object("v1", "Widget", "b"), "is of another group"),
        ("example.com/v3", object("v1", "Widget", "b"), "Widget b: there is no v3"),
        ("example.com/v2", object("v1", "Widget", "panics"), "Widget panics: the conversion panicked"),
        ("example.com/v2", json!(7), "another group"),
    ] {
        let body = review(to, vec![bad]);
        let (status, answer, outcome) = asked(Route::Convert, body.as_bytes()).await;
        let result = &answer["response"]["result"];
        assert_eq!((status, outcome, &result["status"]), (StatusCode::OK, "failed", &json!("Failure")), "{answer}");
        assert!(result["message"].as_str().unwrap().contains(says), "{answer}");
        assert_eq!((&answer["response"]["uid"], &answer["response"]["convertedObjects"]), (&json!("u-2"), &json!([])));
    }
}

const LIFE: Duration = Duration::from_secs(900);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn ours() -> Vec<String> {
    names("leasehold-webhooks", "leasehold-system")
}

fn pair(second: i64) -> Pair {
    make(&ours(), LIFE, at(second)).unwrap()
}

fn judged(pair: &Pair, second: i64) -> Result<Good, Unfit> {
    judge(&pair.chain, &pair.key, &pair.authority, &ours(), at(second))
}

#[test]
fn a_certificate_is_good_for_its_names_its_authority_and_its_time() {
    let (one, other) = (pair(0), pair(0));
    let good = judged(&one, 1).unwrap();
    assert_eq!(good.pair, one);
    assert_eq!(good.not_after, at(900));
    assert!(!good.is_due(at(400)) && good.is_due(at(700)));
    assert_eq!(judged(&one, 900), Err(Unfit::Expired));
    let foreign = |outcome: Result<Good, Unfit>| matches!(outcome, Err(Unfit::Foreign(_)));
    assert!(foreign(judge(&one.chain, &one.key, &other.authority, &ours(), at(1))));
    assert!(foreign(judge(&one.chain, &one.key, "none", &ours(), at(1))));
    assert!(foreign(judge(&one.chain, &one.key, &one.authority, &names("x", "y"), at(1))));
    let both = format!("{}{}", other.authority, one.authority);
    assert_eq!(judge(&one.chain, &one.key, &both, &ours(), at(1)).unwrap().pair, one);
    // Of another issuer, which does not say who it is.
    assert!(judge(&one.chain, &one.key, "", &names("x", "y"), at(1)).is_ok());
    let unreadable =
        |chain: &str, key: &str| matches!(judge(chain, key, &both, &ours(), at(1)), Err(Unfit::Unreadable(_)));
    assert!(unreadable(&one.chain, &other.key), "the key of another one");
    assert!(unreadable(&one.chain, "") && unreadable("", &one.key) && unreadable("x", "y"));
    assert!(unreadable(&one.chain.replace('M', "!"), &one.key));
    assert_eq!(judge("", "", &both, &ours(), at(1)), Err(Unfit::Missing));
    assert!(!format!("{one:?}").contains("PRIVATE"));
}

#[test]
fn a_first_certificate_is_stored_and_then_rests() {
    let nothing = Held::read(&BTreeMap::new(), &ours(), at(0));
    assert_eq!(step(&nothing, at(0)), Step::Renew(Why::Unfit(Unfit::Missing)));
    let contents = renewed(&nothing, None, &[], pair(0), at(0));
    assert_eq!((&contents.next, contents.authorities.len()), (&None, 1));
    let held = Held::read(&contents.data(), &ours(), at(1));
    let Step::Rest { authorities, retire: false } = step(&held, at(1)) else { panic!("{held:?}") };
    assert_eq!(authorities, contents.authorities);
}

#[test]
fn what_cannot_be_used_is_replaced_and_what_is_served_meanwhile_stays_trusted() {
    let served = judged(&pair(0), 1).unwrap();
    let foreign = Contents { authorities: vec![pair(0).authority], serving: pair(0), next: None };
    let mut unreadable = foreign.data();
    unreadable.insert("tls.key".to_owned(), k8s_openapi::ByteString(vec![0xff]));
    let expired = Contents { authorities: vec![], serving: pair(-2000), next: None };
    let mut expired = expired.data();
    expired.insert("ca.crt".to_owned(), k8s_openapi::ByteString(pair(-2000).authority.into_bytes()));
    for (data, reason) in
        [(foreign.data(), "Foreign"), (unreadable, "Unreadable"), (expired, "Expired"), (BTreeMap::new(), "Missing")]
    {
        let held = Held::read(&data, &ours(), at(1));
        let Step::Renew(Why::Unfit(unfit)) = step(&held, at(1)) else { panic!("{reason}: {held:?}") };
        assert_eq!(unfit.reason(), reason);
        let new = pair(1);
        let contents = renewed(&held, Some(&served), &[], new.clone(), at(1));
        assert_eq!((&contents.serving, contents.next.as_ref()), (&served.pair, Some(&new)), "{reason}");
        let both = [&served.pair, &new].map(|pair| pair.authority.trim().to_owned());
        let stored: Vec<_> = contents.authorities.iter().map(|one| one.trim().to_owned()).collect();
        assert_eq!(stored, both, "{reason}: an authority that came with it is not trusted");
        // With nothing served there is nothing to wait for.
        let contents = renewed(&held, None, &[], new.clone(), at(1));
        assert_eq!((contents.serving, contents.next), (new, None), "{reason}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A leader that steps in any rhythm, replicas that load what is stored when they please, and a Secret that is spoilt now
    /// and then: at every moment the configurations trust whatever any replica serves.
    #[test]
    fn whatever_is_served_is_trusted(acts in proptest::collection::vec((0..6_u8, 0..3_usize, 0..200_i64), 1..60)) {
        let first = pair(0);
        let mut data = Contents { authorities: vec![first.authority.clone()], serving: first.clone(), next: None }.data();
        let mut trusted = vec![first.authority.trim().to_owned()];
        let mut replicas = vec![judged(&first, 0).unwrap(); 3];
        let mut now = 0;
        for (act, replica, time) in acts {
            match act {
                0 => now += time,
                1 | 2 => {
                    // Keeps the last good one.
                    let held = Held::read(&data, &ours(), at(now));
                    held.serving.into_iter().for_each(|good| replicas[replica] = good);
                }
                3 if time < 60 => data = BTreeMap::new(),
                _ => {
                    let held = Held::read(&data, &ours(), at(now));
                    match step(&held, at(now)) {
                        Step::Renew(_) => {
                            let contents = renewed(&held, Some(&replicas[0]), &trusted, pair(now), at(now));
                            if contents.next.is_none() {
                                // Nothing good is served any more, so there is nothing that would wait for the new one.
                                trusted = contents.authorities.iter().map(|one| one.trim().to_owned()).collect();
                            }
                            data = contents.data();
                        }
                        Step::Trust { authorities, then } => {
                            trusted = authorities.iter().map(|one| one.trim().to_owned()).collect();
                            data = then.data();
                        }
                        Step::Rest { authorities, retire } => {
                            trusted = authorities.iter().map(|one| one.trim().to_owned()).collect();
                            let serving = held.serving.clone().unwrap();
                            if retire && replicas.iter().all(|good| *good == serving) {
                                data = retired(&held).unwrap().data();
                            }
                        }
                    }
                }
            }
            // One that has expired is another matter.
            for good in replicas.iter().filter(|good| good.not_after > at(now)) {
                prop_assert!(trusted.contains(&good.pair.authority.trim().to_owned()), "{now}");
            }
        }
    }
}

#[test]
fn the_bundle_is_written_beside_our_service_only() {
    let client = |name: &str| json!({"service": {"namespace": "n", "name": name, "path": "/validate"}});
    let mut configuration = json!({"webhooks": [{"clientConfig": client("ours")}, {"clientConfig": client("theirs")}]});
    assert!(trust(&mut configuration, &json!("CA"), "ours", "n"));
    assert_eq!(configuration["webhooks"][0]["clientConfig"]["caBundle"], "CA");
    assert_eq!(configuration["webhooks"][1]["clientConfig"], client("theirs"));
    assert!(!trust(&mut configuration, &json!("CA"), "ours", "n"), "it is there already");
    let mut crd = json!({"spec": {"conversion": {"strategy": "Webhook", "webhook": {"clientConfig": client("ours")}}}});
    assert!(trust(&mut crd, &json!("CA"), "ours", "n"));
    let mut crd = json!({"spec": {"conversion": {"strategy": "None"}}});
    assert!(!trust(&mut crd, &json!("CA"), "ours", "n"));
}

mod served {
    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::timeout,
    };
    use tokio_rustls::{TlsConnector, client::TlsStream};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::webhooks::server::serve;

    const SHORT: Duration = Duration::from_millis(80);
    const LONG: Duration = Duration::from_secs(20);

    fn limits() -> Limits {
        Limits { head: LONG, body: LONG, body_bytes: 4096, all_bodies: 65536, ..Limits::default() }
    }

    struct Served {
        address: SocketAddr,
        pair: Pair,
        stop: CancellationToken,
    }

    impl Served {
        async fn connect(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(self.pair.authority.as_bytes()).unwrap()).unwrap();
            let config = ClientConfig::builder_with_provider(certificate::provider());
            let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
            let mut config = config.with_no_client_auth();
            config.alpn_protocols = vec![alpn.to_vec()];
            let stream = TcpStream::connect(self.address).await.unwrap();
            let name = ServerName::try_from(ours().remove(0)).unwrap();
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
        }

        async fn post(&self, path: &str, head: &str, body: &[u8]) -> String {
            let mut stream = self.connect(b"http/1.1").await;
            let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(body).await.unwrap();
            rest(stream).await
        }

        async fn review(&self) -> String {
            let body = admission("Widget", "fine").to_string();
            self.post("/validate", &format!("content-length: {}\r\n", body.len()), body.as_bytes()).await
        }
    }

    async fn rest(mut stream: TlsStream<TcpStream>) -> String {
        let mut bytes = Vec::new();
        let mut part = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut part).await {
            bytes.extend_from_slice(&part[..read]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    async fn play<T>(limits: Limits, play: impl AsyncFnOnce(&Served) -> T) -> T {
        play_and_leave(limits, Duration::ZERO, play).await
    }

    async fn play_and_leave<T>(limits: Limits, delay: Duration, play: impl AsyncFnOnce(&Served) -> T) -> T {
        #[expect(clippy::disallowed_methods, reason = "a handshake asks the machine's clock")]
        let pair = make(&ours(), LIFE, Timestamp::now()).unwrap();
        let serving = Serving::default();
        #[expect(clippy::disallowed_methods, reason = "as above")]
        let now = Timestamp::now();
        serving.serve(judge(&pair.chain, &pair.key, &pair.authority, &ours(), now).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = CancellationToken::new();
        let served = Served { address: listener.local_addr().unwrap(), pair, stop: stop.clone() };
        let reviews = Arc::new(reviews());
        let server = serve(listener, reviews, serving.tls(), limits, Metrics::default(), stop.cancelled(), delay);
        let played = async { tokio::join!(server, play(&served)).1 };
        let stopped = served.stop.clone();
        timeout(LONG, async {
            let played = played.await;
            drop(stopped);
            played
        })
        .await
        .expect("a test of milliseconds")
    }

    #[tokio::test]
    async fn bad_requests_get_a_review_and_delay_no_other() {
        play(Limits { body: SHORT, ..limits() }, async |served| {
            let slow = served.connect(b"http/1.1").await;
            assert!(served.review().await.contains("\"allowed\":true"));
            for (path, head, body, says) in [
                ("/validate", "content-length: 100000\r\n", &b""[..], "413"),
                (
                    "/convert",
                    "transfer-encoding: chunked\r\n",
                    &[b"2000\r\n".as_slice(), &[b' '; 8192], b"\r\n0\r\n\r\n"].concat(),
                    "413",
                ),
                ("/validate", "content-length: 2001\r\n", &[b"[".as_slice(), &b"0,".repeat(1000)].concat(), "413"),
                ("/mutate", "content-length: 1000\r\n", b"{", "408"),
                ("/validate", "content-length: 1\r\n", b"{", "400"),
                ("/elsewhere", "content-length: 1\r\n", b"{", "404"),
            ] {
                let answer = served.post(path, head, body).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {says} ")), "{path}: {answer}");
                assert!(path == "/elsewhere" || answer.contains("Review\""), "{answer}");
                assert!(served.review().await.contains("\"allowed\":true"));
            }
            drop(slow);
            served.stop.cancel();
        })
        .await;
    }

    #[tokio::test]
    async fn clients_that_only_connect_keep_no_other_out_nor_one_that_is_answered() {
        play(Limits { connections: 4, ..limits() }, async |served| {
            let mut kept = served.connect(b"http/1.1").await;
            let body = admission("Widget", "fine").to_string();
            let request = format!("POST /validate HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let mut answer = [0; 15];
            kept.write_all(request.as_bytes()).await.unwrap();
            kept.read_exact(&mut answer).await.unwrap();
            let mut idle = Vec::new();
            for _ in 0..20 {
                idle.push(TcpStream::connect(served.address).await.unwrap());
            }
            assert!(served.review().await.contains("\"allowed\":true"));
            let mut read = vec![0; 4096];
            // The rest of the first answer, and then another one on the same connection.
            let _ = kept.read(&mut read).await.unwrap();
            kept.write_all(request.as_bytes()).await.unwrap();
            assert!(kept.read(&mut read).await.unwrap() > 0, "it was cut off for one that says nothing");
            drop((idle, kept));
            served.stop.cancel();
        })
        .await;
    }

    /// An API server loses the request that it writes on a connection as we close it.
    #[tokio::test]
    async fn an_answer_ends_its_connection_when_the_replica_is_told_to_stop_and_not_before() {
        let ask = async |stream: &mut TlsStream<TcpStream>| {
            let body = admission("Widget", "fine").to_string();
            let request = format!("POST /validate HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(request.as_bytes()).await.unwrap();
            let (mut answer, mut part) = (String::new(), [0; 4096]);
            while !answer.contains("\"allowed\":true") {
                let read = stream.read(&mut part).await.unwrap();
                assert!(read > 0, "{answer}");
                answer.push_str(&String::from_utf8_lossy(&part[..read]));
            }
            answer.contains("connection: close")
        };
        play_and_leave(limits(), Duration::from_secs(1), async |served| {
            let (mut used, mut rests) = (served.connect(b"http/1.1").await, served.connect(b"http/1.1").await);
            assert!(!ask(&mut used).await && !ask(&mut used).await);
            served.stop.cancel();
            while !ask(&mut served.connect(b"http/1.1").await).await {}
            assert!(ask(&mut used).await && rest(used).await.is_empty());
            assert!(rests.read(&mut [0; 1]).await.is_ok_and(|read| read == 0), "it is closed after the delay");
        })
        .await;
        play(Limits { age: Duration::ZERO, ..limits() }, async |served| {
            assert!(ask(&mut served.connect(b"http/1.1").await).await, "it is old");
            served.stop.cancel();
        })
        .await;
    }

    /// hyper's own time for a head would run while a connection rests.
    #[tokio::test]
    async fn a_connection_may_rest_for_longer_than_a_head_may_take() {
        play(Limits { head: Duration::from_secs(1), ..limits() }, async |served| {
            let (mut rests, mut begun) = (served.connect(b"http/1.1").await, served.connect(b"http/1.1").await);
            begun.write_all(b"POST /validate").await.unwrap();
            assert_eq!(begun.read(&mut [0; 1]).await.unwrap_or(0), 0, "its head does not come");
            rests.write_all(b"POST /elsewhere HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            assert!(rests.read(&mut [0; 1]).await.is_ok_and(|read| read == 1));
            served.stop.cancel();
        })
        .await;
    }

    /// Requests go on over one HTTP/2 connection while the server stops: each is answered, or said not to be taken.
    #[tokio::test]
    async fn at_the_end_a_client_of_http2_is_told_which_requests_were_not_taken() {
        use http_body_util::{BodyExt as _, Full};
        use hyper::body::Bytes;
        use hyper_util::rt::{TokioExecutor, TokioIo};

        play(limits(), async |served| {
            let stream = served.connect(b"h2").await;
            let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
            let lost = AtomicUsize::new(0);
            let ask = async {
                let mut answered = 0;
                for number in 0..200 {
                    if number == 100 {
                        served.stop.cancel();
                    }
                    let body = Full::new(Bytes::from(admission("Widget", "fine").to_string()));
                    let request = Request::post("https://x/validate").body(body).unwrap();
                    if sender.ready().await.is_err() {
                        break;
                    }
                    match sender.send_request(request).await {
                        Ok(response) => {
                            assert_eq!(response.status(), 200);
                            response.into_body().collect().await.unwrap();
                            answered += 1;
                        }
                        // Not taken, and so to be sent again elsewhere.
                        Err(error) if error.is_canceled() || format!("{error:?}").contains("GoAway") => break,
                        Err(_) => _ = lost.fetch_add(1, Ordering::Relaxed),
                    }
                }
                answered
            };
            let (answered, ended) = tokio::join!(ask, connection);
            assert!(answered >= 100 && lost.load(Ordering::Relaxed) == 0, "{answered} answered, {lost:?} lost");
            ended.unwrap();
        })
        .await;
    }
}

#[test]
fn a_third_before_its_end_a_certificate_is_due() {
    let good = judged(&pair(0), 1).unwrap();
    let third = SignedDuration::from_secs((900 + 300) / 3);
    assert!(!good.is_due(good.not_after - third));
    assert!(good.is_due(good.not_after - third + SignedDuration::from_secs(1)));
}
