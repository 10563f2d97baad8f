//! `kubectl logs`: the HTTPS server the API server asks, under the path a kubelet has.

use super::Host;
use anyhow::{Context, Result};
use futures::stream;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::{
    collections::HashMap,
    convert::Infallible,
    fs::File,
    future::Future,
    io::{Read, Seek, SeekFrom},
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

const FOLLOW: Duration = Duration::from_millis(100);

type Body = BoxBody<Bytes, Infallible>;

/// Binds a loopback port; the future serves it until dropped.
pub(crate) async fn serve(host: Arc<Host>) -> Result<(u16, impl Future<Output = ()> + Send + use<>)> {
    let server = host.authority.issue(&["127.0.0.1", "localhost"])?.server()?;
    let acceptor = TlsAcceptor::from(server);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port for the log server")?;
    let port = listener.local_addr()?.port();
    let serving = async move {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (acceptor, host) = (acceptor.clone(), host.clone());
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |request| {
                    let answer = answer(&host, &request);
                    async { Ok::<_, Infallible>(answer) }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                // A reader that goes away ends its follow this way.
                let _ = connection.await;
            });
        }
    };
    Ok((port, serving))
}

fn answer(host: &Arc<Host>, request: &Request<Incoming>) -> Response<Body> {
    let text = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::from(text).boxed());
        *response.status_mut() = status;
        response
    };
    let path: Vec<_> = request.uri().path().trim_matches('/').split('/').collect();
    let ["containerLogs", namespace, pod, container] = path[..] else {
        return text(StatusCode::NOT_FOUND, "the process kubelet answers /containerLogs only\n".into());
    };
    let query: HashMap<_, _> =
        request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')).collect();
    let asked = |name: &str| query.get(name).is_some_and(|value| matches!(*value, "true" | "1"));
    let Some(runs) = host.record(namespace, pod).and_then(|record| record.runs(container)) else {
        return text(StatusCode::NOT_FOUND, format!("container {container:?} of {namespace}/{pod} has not started\n"));
    };
    let last = runs.offsets.len().saturating_sub(1);
    let (from, to) = if asked("previous") {
        if last == 0 {
            return text(StatusCode::BAD_REQUEST, format!("previous terminated container {container:?} not found\n"));
        }
        (runs.offsets[last - 1], Some(runs.offsets[last]))
    } else {
        (runs.offsets.get(last).copied().unwrap_or_default(), None)
    };
    let content = match read(&runs.log, from, to) {
        Ok(content) => content,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
    };
    let end = from + content.len() as u64;
    let mut shown = match query.get("tailLines").and_then(|lines| lines.parse().ok()) {
        Some(lines) => tail(&content, lines),
        None => content,
    };
    if let Some(limit) = query.get("limitBytes").and_then(|limit| limit.parse().ok()) {
        shown.truncate(limit);
    }
    if !asked("follow") || asked("previous") {
        return Response::new(Full::from(shown).boxed());
    }
    let follow = Follow {
        host: host.clone(),
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: container.to_owned(),
        run: last,
        log: runs.log,
        position: end,
        first: Some(shown),
    };
    let frames = stream::unfold(follow, |mut follow| async move {
        let next = follow.next().await?;
        Some((Ok(Frame::data(Bytes::from(next))), follow))
    });
    Response::new(BodyExt::boxed(StreamBody::new(
        Box::pin(frames) as std::pin::Pin<Box<dyn futures::Stream<Item = _> + Send + Sync>>
    )))
}

/// One reader of a run that goes on.
struct Follow {
    host: Arc<Host>,
    namespace: String,
    pod: String,
    container: String,
    run: usize,
    log: PathBuf,
    position: u64,
    first: Option<Vec<u8>>,
}

impl Follow {
    async fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Some(first);
        }
        loop {
            let runs = self.host.record(&self.namespace, &self.pod).and_then(|record| record.runs(&self.container))?;
            let until = runs.offsets.get(self.run + 1).copied();
            // Asked before reading: what an ended process wrote is all there.
            let over = runs.pid.is_none() || until.is_some();
            let more = read(&self.log, self.position, until).ok()?;
            if !more.is_empty() {
                self.position += more.len() as u64;
                return Some(more);
            }
            if over {
                return None;
            }
            tokio::time::sleep(FOLLOW).await;
        }
    }
}

fn read(log: &PathBuf, from: u64, to: Option<u64>) -> Result<Vec<u8>> {
    let mut file = File::open(log).with_context(|| format!("failed to open {}", log.display()))?;
    file.seek(SeekFrom::Start(from))?;
    let mut content = Vec::new();
    file.take(to.map_or(u64::MAX, |to| to.saturating_sub(from))).read_to_end(&mut content)?;
    Ok(content)
}

fn tail(content: &[u8], lines: usize) -> Vec<u8> {
    let body = content.strip_suffix(b"\n").unwrap_or(content);
    if lines == 0 {
        return Vec::new();
    }
    let breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let start = breaks.take(lines).nth(lines - 1).unwrap_or(0);
    content[start..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_counts_lines() {
        for (content, lines, expected) in
            [("a\nb\nc\n", 2, "b\nc\n"), ("a\nb\nc", 1, "c"), ("a\nb\n", 5, "a\nb\n"), ("a\n", 0, ""), ("", 3, "")]
        {
            assert_eq!(tail(content.as_bytes(), lines), expected.as_bytes(), "{content:?} {lines}");
        }
    }
}
