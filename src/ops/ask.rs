//! Asks one replica for what its endpoints say, within bounds: any process may answer at its address.

use std::net::SocketAddr;

use anyhow::{Context as _, anyhow};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Body, Bytes};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioExecutor};

/// What an answer is, if it is not a good one.
#[derive(Debug, thiserror::Error)]
#[error("{status}: {message}")]
pub struct Refusal {
    /// Its status.
    pub status: StatusCode,
    /// The first words of it.
    pub message: String,
}

/// The body of a good answer to a GET at this address, of so many bytes at the most. How long it takes is the caller's to
/// bound. Cancel safe.
///
/// # Errors
/// If there is no answer, or it is too long; a [`Refusal`] if it is not a good one.
pub async fn ask(address: SocketAddr, path_and_query: &str, most: usize) -> anyhow::Result<Bytes> {
    let request = Request::get(format!("http://{address}{path_and_query}"))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let direct = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build::<HttpConnector, Empty<Bytes>>(HttpConnector::new());
    read(direct.request(request).await.context("no answer")?, most).await
}

/// The body of a good answer, of so many bytes at the most.
///
/// # Errors
/// If it breaks off, or is too long; a [`Refusal`] if the answer is not a good one.
pub async fn read<B: Body<Data = Bytes>>(answer: Response<B>, most: usize) -> anyhow::Result<Bytes>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let status = answer.status();
    let body = Limited::new(answer.into_body(), most)
        .collect()
        .await
        .map_err(|error| anyhow!("its answer broke off: {error}"))?;
    let bytes = body.to_bytes();
    if status.is_success() {
        return Ok(bytes);
    }
    let told: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let told = told.as_ref().and_then(|told| told["message"].as_str()).map(str::to_owned);
    let message = told.unwrap_or_else(|| String::from_utf8_lossy(&bytes).trim().chars().take(200).collect());
    Err(Refusal { status, message }.into())
}
