//! A collector gets the spans: one for a reconciliation, with its requests as children and a link to the takeover.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value,
    trace::v1::{Span, status::StatusCode},
};
use prost::Message as _;
use tracing::{debug_span, info_span};
use tracing_subscriber::layer::SubscriberExt as _;

/// Answers one request after the other, and passes their paths and bodies on.
fn collect(listener: TcpListener, bodies: mpsc::Sender<(String, Vec<u8>)>) {
    for stream in listener.incoming().map_while(Result::ok) {
        let _ = serve(&stream, &bodies);
    }
}

fn serve(mut stream: &TcpStream, bodies: &mpsc::Sender<(String, Vec<u8>)>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            if let Some(given) = line.to_lowercase().strip_prefix("content-length:") {
                length = given.trim().parse().unwrap_or(0);
            }
            head.push(line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let _ = bodies.send((head.remove(0), body));
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|it| it.key == key)?.value.clone()?.value?;
    match value {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

#[test]
fn a_collector_gets_reconciliations_with_their_requests_and_a_link_to_the_takeover() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (bodies, received) = mpsc::channel();
    thread::spawn(move || collect(listener, bodies));
    let (layer, sent) = leasehold_otlp::to(&format!("{endpoint}/v1/traces"), "0.1.0", "a_1").unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        // As src/reconcile/due and src/replica/fence make them.
        let takeover = debug_span!(target: "leasehold::spans", "takeover", kind = "Widget.example.com");
        let reconcile = debug_span!(
            target: "leasehold::spans",
            "reconcile",
            kind = "Widget.example.com",
            otel.status_code = tracing::field::Empty
        );
        reconcile.follows_from(&takeover);
        let _entered = reconcile.enter();
        let _of_a_library = info_span!("HTTP").entered();
        let write = debug_span!(
            target: "leasehold::spans",
            "request",
            otel.name = "PATCH configmaps",
            otel.kind = "client",
            http.response.status_code = tracing::field::Empty
        );
        write.record("http.response.status_code", 409);
        reconcile.record("otel.status_code", "ERROR");
    });
    drop(sent);
    let (path, body) = received.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(path.starts_with("POST /v1/traces "), "{path}");
    let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
    let resource = &request.resource_spans[0];
    let attributes = &resource.resource.as_ref().unwrap().attributes;
    for key in ["service.name", "service.version", "service.instance.id"] {
        assert!(attributes.iter().any(|it| it.key == key), "{key}: {attributes:?}");
    }
    let spans: Vec<&Span> = resource.scope_spans.iter().flat_map(|scope| &scope.spans).collect();
    let named =
        |name: &str| *spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {spans:#?}"));
    assert_eq!(spans.len(), 3, "those of others are not sent: {spans:#?}");
    let (takeover, reconcile, write) = (named("takeover"), named("reconcile"), named("PATCH configmaps"));
    assert_eq!(attribute(reconcile, "kind").as_deref(), Some("Widget.example.com"));
    assert_eq!(reconcile.status.as_ref().unwrap().code, i32::from(StatusCode::Error as u8));
    assert_eq!(
        (write.parent_span_id.clone(), write.trace_id.clone()),
        (reconcile.span_id.clone(), reconcile.trace_id.clone())
    );
    assert_eq!(attribute(write, "http.response.status_code").as_deref(), Some("409"));
    assert_eq!(reconcile.links.len(), 1);
    assert_eq!(reconcile.links[0].span_id, takeover.span_id);
}
