//! What is known of the replica, for an HTTP server of the program's own.

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use crate::ops::{http::router, metrics::Metrics, status::Status};

/// Whether the replica lives and is ready, what it counts, and which shards it leads. Clones are handles on the same.
///
/// [`Builder::endpoints`](crate::Builder::endpoints) serves it by itself; this is for a program that has an HTTP server anyway.
#[derive(Clone)]
pub struct Health {
    status: Status,
    metrics: Metrics,
}

impl Health {
    pub(crate) fn new(status: Status, metrics: Metrics) -> Self {
        Self { status, metrics }
    }

    /// Whether the replica is ready: it hears of Leases and takes part. It does not depend on leading anything.
    ///
    /// # Errors
    /// What it is not ready for.
    pub fn ready(&self) -> Result<(), String> {
        self.status.ready()
    }

    /// The answer to a GET of `/livez`, `/readyz`, `/metrics`, `/shards` or `/history`, with the query if there is one; 404 for all
    /// else.
    /// Makes no request to the API server. Cancel safe.
    pub async fn get(&self, path: &str) -> Response<String> {
        let failed = |code| {
            let mut response = Response::new(String::new());
            *response.status_mut() = code;
            response
        };
        let name = path.split('?').next().unwrap_or_default();
        if !["/livez", "/readyz", "/metrics", "/shards", "/history"].contains(&name) {
            return failed(StatusCode::NOT_FOUND);
        }
        let Ok(request) = Request::get(path).body(axum::body::Body::empty()) else {
            return failed(StatusCode::BAD_REQUEST);
        };
        let answer = match router(self.status.clone(), self.metrics.clone()).oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        let (head, body) = answer.into_parts();
        match body.collect().await {
            Ok(body) => Response::from_parts(head, String::from_utf8_lossy(&body.to_bytes()).into_owned()),
            Err(_cut_off) => failed(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_answers_as_the_endpoints_do() {
        let status = Status::default();
        let health = Health::new(status.clone(), Metrics::new(["Widget.example.com".to_owned()], status.clone()));
        status.update_replica(|replica| replica.unready = Some("no list yet".to_owned()));
        let said = health.get("/readyz").await;
        assert_eq!((said.status(), said.body().contains("no list yet")), (StatusCode::SERVICE_UNAVAILABLE, true));
        assert!(health.ready().is_err());
        status.update_replica(|replica| replica.unready = None);
        assert_eq!((health.get("/readyz").await.status(), health.ready()), (StatusCode::OK, Ok(())));
        assert!(health.get("/metrics").await.body().contains("leasehold_leading"));
        assert_eq!(health.get("/shards?kind=Widget.example.com").await.status(), StatusCode::OK);
        // The page has answers that never end.
        for path in ["/else", "/page/events", "no path"] {
            assert_eq!(health.get(path).await.status(), StatusCode::NOT_FOUND);
        }
        assert_eq!(health.get("/shards?kind=a b").await.status(), StatusCode::BAD_REQUEST);
    }
}
