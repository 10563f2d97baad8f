//! From the body of a request to the body of its answer: reviews are decoded, given to the webhook of their kind, and
//! encoded. Whatever is wrong with one is said in a review as well, so that the API server passes it on to the author.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use http::StatusCode;
use kube::{
    Client,
    core::{
        DynamicObject, Status, TypeMeta,
        admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation},
        conversion::{ConversionRequest, ConversionResponse, ConversionReview},
    },
};
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use super::{Asked, Denied, Of, Webhook};

/// What a request asks for, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `/validate`
    Validate,
    /// `/mutate`
    Mutate,
    /// `/convert`
    Convert,
}

impl Route {
    /// The one of a path.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/validate" => Some(Self::Validate),
            "/mutate" => Some(Self::Mutate),
            "/convert" => Some(Self::Convert),
            _ => None,
        }
    }

    /// For metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::Mutate => "mutate",
            Self::Convert => "convert",
        }
    }
}

/// An answer, and what came of the request.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status: 200 if the request was a review.
    pub status: StatusCode,
    /// A review.
    pub body: Vec<u8>,
    /// `allowed`, `denied`, `failed` or `invalid`.
    pub outcome: &'static str,
}

/// Gives reviews to webhooks.
pub struct Reviews {
    hooks: BTreeMap<(String, String), Arc<dyn Webhook>>,
    client: Client,
    within: Duration,
}

impl Reviews {
    /// By group and kind. A webhook that has not answered after `within` has failed.
    pub fn new(hooks: BTreeMap<(String, String), Arc<dyn Webhook>>, client: Client, within: Duration) -> Self {
        Self { hooks, client, within }
    }

    /// Answers a request.
    pub async fn answer(&self, route: Route, body: &[u8]) -> Answer {
        match route {
            Route::Convert => self.convert(body),
            Route::Validate | Route::Mutate => self.admit(route, body).await,
        }
    }

    async fn admit(&self, route: Route, body: &[u8]) -> Answer {
        let review = match serde_json::from_slice::<AdmissionReview<DynamicObject>>(body) {
            Ok(review) => review,
            Err(error) => {
                return invalid(route, StatusCode::BAD_REQUEST, &format!("this is no AdmissionReview: {error}"), body);
            }
        };
        if let Err(message) = expect("AdmissionReview", "admission.k8s.io/v1", &review.types) {
            return invalid(route, StatusCode::BAD_REQUEST, &message, body);
        }
        let request: AdmissionRequest<DynamicObject> = match review.try_into() {
            Ok(request) => request,
            Err(_) => return invalid(route, StatusCode::BAD_REQUEST, "the AdmissionReview has no request", body),
        };
        let answer = AdmissionResponse::from(&request);
        let outcome = match self.hooks.get(&(request.kind.group.clone(), request.kind.kind.clone())) {
            None => {
                let known: Vec<_> = self.hooks.keys().map(|(group, kind)| format!("{kind}.{group}")).collect();
                let message = format!(
                    "no webhook here answers for {}.{}, but for {}: take the rule out of the webhook configuration",
                    request.kind.kind,
                    request.kind.group,
                    known.join(", ")
                );
                Err(Denied { message, code: 404 })
            }
            Some(hook) => {
                let asked = Asked { request: &request, client: &self.client };
                let answered = AssertUnwindSafe(called(&**hook, &asked, route, answer.clone())).catch_unwind();
                match timeout(self.within, answered).await {
                    Ok(Ok(answered)) => answered,
                    Ok(Err(_panicked)) => {
                        Err(Denied { message: "the webhook panicked; its log says where".to_owned(), code: 500 })
                    }
                    Err(_elapsed) => {
                        let message = format!("the webhook has not answered within {} s", self.within.as_secs());
                        Err(Denied { message, code: 504 })
                    }
                }
            }
        };
        let (answer, outcome) = match outcome {
            Ok(answer) => (answer, "allowed"),
            Err(Denied { message, code }) => {
                let outcome = if code < 500 { "denied" } else { "failed" };
                let mut answer = answer;
                answer.allowed = false;
                answer.result = Status::failure(&message, reason(code)).with_code(code);
                (answer, outcome)
            }
        };
        Answer { status: StatusCode::OK, body: encoded(&answer.into_review()), outcome }
    }

    fn convert(&self, body: &[u8]) -> Answer {
        let review = match serde_json::from_slice::<ConversionReview>(body) {
            Ok(review) => review,
            Err(error) => {
                let message = format!("this is no ConversionReview: {error}");
                return invalid(Route::Convert, StatusCode::BAD_REQUEST, &message, body);
            }
        };
        if let Err(message) = expect("ConversionReview", "apiextensions.k8s.io/v1", &review.types) {
            return invalid(Route::Convert, StatusCode::BAD_REQUEST, &message, body);
        }
        let Ok(mut request) = ConversionRequest::from_review(review) else {
            let message = "the ConversionReview has no request";
            return invalid(Route::Convert, StatusCode::BAD_REQUEST, message, body);
        };
        let objects = std::mem::take(&mut request.objects);
        let desired = request.desired_api_version.clone();
        let response = ConversionResponse::for_request(request);
        let converted: Result<Vec<_>, _> = objects.into_iter().map(|object| self.converted(object, &desired)).collect();
        let (response, outcome) = match converted {
            Ok(objects) => (response.success(objects), "allowed"),
            Err(message) => (response.failure(Status::failure(&message, "Invalid").with_code(422)), "failed"),
        };
        Answer { status: StatusCode::OK, body: encoded(&response.into_review()), outcome }
    }

    fn converted(&self, object: Value, desired: &str) -> Result<Value, String> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        let (group, from) = api_version.split_once('/').unwrap_or(("", &api_version));
        let (wanted, to) = desired.split_once('/').unwrap_or(("", desired));
        let what = || format!("{kind} {name}");
        if group != wanted {
            return Err(format!("{}: {api_version} is of another group than {desired}", what()));
        }
        if from == to {
            return Ok(object);
        }
        let hook = self
            .hooks
            .get(&(group.to_owned(), kind.clone()))
            .ok_or_else(|| format!("{}: no webhook here converts {kind}.{group}", what()))?;
        let convert = AssertUnwindSafe(|| hook.convert(object.clone(), from, to));
        let converted = std::panic::catch_unwind(convert).map_err(|_| "the conversion panicked".to_owned());
        converted.flatten().map_err(|why| format!("{}: {why}", what()))
    }

    /// What it answers for.
    pub fn kinds(&self) -> impl Iterator<Item = Of> + '_ {
        self.hooks.keys().map(|(group, kind)| Of::new(group.clone(), kind.clone(), ""))
    }
}

/// Whether a review is what its route answers; the answer would bear the type that it says otherwise.
fn expect(kind: &str, api_version: &str, found: &TypeMeta) -> Result<(), String> {
    if found.kind == kind && found.api_version == api_version {
        return Ok(());
    }
    Err(format!("expected {kind} of {api_version}, found {} of {}", found.kind, found.api_version))
}

async fn called(
    hook: &dyn Webhook,
    asked: &Asked<'_>,
    route: Route,
    mut answer: AdmissionResponse,
) -> Result<AdmissionResponse, Denied> {
    if route == Route::Validate {
        let warnings = hook.validate(asked).await?;
        answer.warnings = (!warnings.is_empty()).then_some(warnings);
        return Ok(answer);
    }
    let (Some(object), false) = (&asked.request.object, asked.request.operation == Operation::Delete) else {
        return Ok(answer);
    };
    let broken = |error: &dyn std::fmt::Display| Denied { message: format!("the patch is broken: {error}"), code: 500 };
    let before = serde_json::to_value(object).map_err(|error| broken(&error))?;
    let mut after = before.clone();
    hook.default(asked, &mut after).await?;
    let patch = json_patch::diff(&before, &after);
    if patch.0.is_empty() { Ok(answer) } else { answer.with_patch(patch).map_err(|error| broken(&error)) }
}

/// A review that says what is wrong with a request, with its uid if that can be read.
pub fn invalid(route: Route, status: StatusCode, message: &str, body: &[u8]) -> Answer {
    let uid = || {
        let body: Value = serde_json::from_slice(body).ok()?;
        body.pointer("/request/uid").and_then(Value::as_str).map(str::to_owned)
    };
    let said = Status::failure(message, reason(status.as_u16())).with_code(status.as_u16());
    let body = if route == Route::Convert {
        let mut response = ConversionResponse::invalid(said);
        response.uid = uid().unwrap_or_default();
        encoded(&response.into_review())
    } else {
        let mut response = AdmissionResponse::invalid(message);
        (response.uid, response.result) = (uid().unwrap_or_default(), said);
        encoded(&response.into_review())
    };
    Answer { status, body, outcome: "invalid" }
}

fn reason(code: u16) -> &'static str {
    match code {
        400 => "BadRequest",
        403 => "Forbidden",
        404 => "NotFound",
        413 => "RequestEntityTooLarge",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    }
}

/// Of our own types, whose keys are text.
fn encoded(review: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(review).unwrap_or_default()
}
