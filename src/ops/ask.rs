//! Asks one replica for what its endpoints say, within bounds: any process may answer at its address.

use std::{error::Error, net::SocketAddr};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Body, Bytes};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioExecutor};

use super::causes::describe;

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoAnswer {
    /// This is no path, or no address.
    #[error("{0}")]
    Request(#[from] http::Error),
    /// Nothing has answered; the causes are in one line.
    #[error("no answer: {0}")]
    Silence(String),
    /// The answer broke off, or is too long.
    #[error("its answer broke off: {0}")]
    BrokenOff(Box<dyn Error + Send + Sync>),
    /// The answer is not a good one.
    #[error("{status}: {message}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its first words.
        message: String,
    },
}

/// The body of a good answer to a GET at this address, of so many bytes at the most. How long it takes is the caller's to
/// bound. Cancel safe.
///
/// # Errors
/// If there is no answer, or not a good one, or it is too long.
pub async fn ask(address: SocketAddr, path_and_query: &str, most: usize) -> Result<Bytes, NoAnswer> {
    let request = Request::get(format!("http://{address}{path_and_query}"))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let direct = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build::<HttpConnector, Empty<Bytes>>(HttpConnector::new());
    let answer = direct.request(request).await.map_err(|error| NoAnswer::Silence(describe(&error)))?;
    read(answer, most).await
}

/// The body of a good answer, of so many bytes at the most.
///
/// # Errors
/// If it breaks off, is too long, or the answer is not a good one.
pub async fn read<B: Body<Data = Bytes>>(answer: Response<B>, most: usize) -> Result<Bytes, NoAnswer>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let status = answer.status();
    let body = Limited::new(answer.into_body(), most).collect().await.map_err(NoAnswer::BrokenOff)?;
    let bytes = body.to_bytes();
    if status.is_success() {
        return Ok(bytes);
    }
    let told: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let told = told.as_ref().and_then(|told| told["message"].as_str()).map(str::to_owned);
    let message = told.unwrap_or_else(|| String::from_utf8_lossy(&bytes).trim().chars().take(200).collect());
    Err(NoAnswer::Refused { status, message })
}
