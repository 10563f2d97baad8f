//! Lists in pages that fit into memory.
//!
//! A list is asked for in pages of up to 500 objects, and a page is in memory as a whole, once as it was answered and once as
//! what it says. Of objects of 1 MB that is a gigabyte. So no more than [`MOST`] is read of a page. One that is larger is asked
//! for again with fewer objects: with the same token to go on from, so it is a page of the same version of the list.
//! The next page has as many objects as weigh half of that, if they weigh as much each.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use kube::client;
use tower::{BoxError, Service};

use super::parameters;

/// Bytes of a page of more than one object.
const MOST: usize = 4 << 20;
/// A page that is too large is asked for again with this share of its objects.
const SHARE: u64 = 8;
/// Lists that are remembered: a client has a handful, and one that is forgotten is only tried anew.
const LISTS: usize = 64;

/// How many objects a page shall have of each list whose objects are heavy, by what is listed.
#[derive(Clone, Default)]
pub(super) struct Pages(Arc<Mutex<HashMap<String, u64>>>);

impl Pages {
    fn next(&self, list: &str, asked: u64) -> u64 {
        self.lock().get(list).map_or(asked, |next| asked.min(*next))
    }

    /// A page of so many objects had so many bytes.
    fn note(&self, list: String, asked: u64, count: u64, bytes: usize) {
        let fits = ((MOST as u64 / 2).saturating_mul(count) / (bytes as u64).max(1)).max(1);
        let mut lists = self.lock();
        if fits >= asked {
            lists.remove(&list);
            return;
        }
        if lists.len() >= LISTS && !lists.contains_key(&list) {
            lists.clear();
        }
        lists.insert(list, fits);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is listed, and how many objects are asked for; `None`: it is no page of a list.
fn page(method: &Method, uri: &Uri) -> Option<(String, u64)> {
    if method != Method::GET {
        return None;
    }
    let asked = parameters(uri).find_map(|pair| pair.strip_prefix("limit="))?.parse::<u64>().ok()?;
    let of_list = |pair: &&str| !pair.starts_with("limit=") && !pair.starts_with("continue=");
    let others: Vec<_> = parameters(uri).filter(of_list).collect();
    // Zero is no limit.
    (asked > 0).then(|| (format!("{}?{}", uri.path(), others.join("&")), asked))
}

/// The address of a page of so many objects.
fn of(uri: &Uri, count: u64) -> Result<Uri, BoxError> {
    let limit = format!("limit={count}");
    let pairs = parameters(uri).filter(|pair| !pair.starts_with("limit=")).chain([limit.as_str()]);
    let query = pairs.collect::<Vec<_>>().join("&");
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{}?{query}", uri.path()).parse()?);
    Ok(Uri::from_parts(parts)?)
}

/// What is answered, as long as it has no more bytes.
async fn up_to<R>(most: usize, mut body: R) -> Result<Option<Bytes>, BoxError>
where
    R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(Into::into)?.into_data() {
            if read.len() + data.len() > most {
                return Ok(None);
            }
            read.extend_from_slice(&data);
        }
    }
    Ok(Some(read.into()))
}

/// The body of an answer.
pub(super) enum Answer<R> {
    /// A page, which was read.
    Page(Full<Bytes>),
    /// Of anything else.
    Other(R),
}

impl<R: Body<Data = Bytes> + Unpin> Body for Answer<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        match self.get_mut() {
            Self::Page(page) => Pin::new(page).poll_frame(context).map_err(|never| match never {}),
            Self::Other(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Page(page) => page.is_end_stream(),
            Self::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Page(page) => page.size_hint(),
            Self::Other(body) => body.size_hint(),
        }
    }
}

/// Asks for lists in such pages.
#[derive(Clone)]
pub(super) struct Paged<S> {
    pub(super) inner: S,
    pub(super) pages: Pages,
}

impl<S, R> Service<Request<client::Body>> for Paged<S>
where
    S: Service<Request<client::Body>, Response = Response<R>, Error = BoxError, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<Answer<R>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<client::Body>) -> Self::Future {
        let Some((list, asked)) = page(request.method(), request.uri()) else {
            let answer = self.inner.call(request);
            return async move { Ok(answer.await?.map(Answer::Other)) }.boxed();
        };
        // The one that is ready takes the request.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let pages = self.pages.clone();
        let (head, _) = request.into_parts();
        async move {
            let mut count = pages.next(&list, asked);
            loop {
                let mut head = head.clone();
                head.uri = of(&head.uri, count)?;
                let (answer, body) = inner.call(Request::from_parts(head, client::Body::empty())).await?.into_parts();
                let most = if count > 1 { MOST } else { usize::MAX };
                if let Some(bytes) = up_to(most, body).await? {
                    if answer.status.is_success() {
                        pages.note(list, asked, count, bytes.len());
                    }
                    return Ok(Response::from_parts(answer, Answer::Page(Full::new(bytes))));
                }
                count = (count / SHARE).max(1);
                poll_fn(|context| inner.poll_ready(context)).await?;
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use tower::{ServiceExt, service_fn};

    use super::*;

    const LIST: &str = "/apis/e.com/v1/widgets?labelSelector=a%3Db&limit=500";

    /// Reads a list of objects that weigh so much, and says of which pages: how many were asked for from which object on.
    async fn read(pages: &Pages, weights: &Arc<Vec<usize>>) -> Vec<(usize, usize)> {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, all) = (Arc::clone(&requests), Arc::clone(weights));
        let inner = service_fn(move |request: Request<client::Body>| {
            let uri = request.uri();
            assert!(parameters(uri).any(|pair| pair == "labelSelector=a%3Db"), "{uri}");
            let of = |name| parameters(uri).find_map(|pair| pair.strip_prefix(name)?.parse::<usize>().ok());
            let (from, limit) = (of("continue=").unwrap_or(0), of("limit=").unwrap());
            log.lock().unwrap().push((limit, from));
            let to = all.len().min(from + limit);
            let body = Full::new(Bytes::from(vec![b'x'; all[from..to].iter().sum()]));
            let answer = Response::builder().header("next", to).body(body);
            async move { answer.map_err(BoxError::from) }
        });
        let mut paged = Paged { inner, pages: pages.clone() };
        let (mut from, mut length) = (0, 0);
        while from < weights.len() {
            let next = if from == 0 { String::new() } else { format!("&continue={from}") };
            let request = Request::get(format!("{LIST}{next}")).body(client::Body::empty()).unwrap();
            let (answer, body) = paged.ready().await.unwrap().call(request).await.unwrap().into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let to = answer.headers["next"].to_str().unwrap().parse().unwrap();
            assert!(bytes.len() <= MOST || to - from == 1, "{} bytes from {from} to {to}", bytes.len());
            (from, length) = (to, length + bytes.len());
        }
        assert_eq!(length, weights.iter().sum::<usize>(), "nothing is left out, and nothing comes twice");
        requests.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn a_list_of_small_objects_costs_no_request_more() {
        let pages = Pages::default();
        assert_eq!(read(&pages, &Arc::new(vec![1000; 1200])).await, [(500, 0), (500, 500), (500, 1000)]);
        assert!(pages.lock().is_empty());
    }

    #[tokio::test]
    async fn no_page_of_several_objects_is_larger_than_what_fits_whatever_stands_before_it() {
        let pages = Pages::default();
        let heavy = Arc::new(vec![MOST / 8; 20]);
        assert_eq!(read(&pages, &heavy).await[..4], [(500, 0), (62, 0), (7, 0), (4, 7)]);
        // The last page was a short one.
        let again = [(16, 0), (2, 0), (4, 2), (4, 6), (4, 10), (4, 14), (4, 18)];
        assert_eq!(read(&pages, &heavy).await, again, "it is known when it comes again");
        // Small ones first, so that a page may have many.
        let mixed = [vec![100; 600], vec![MOST / 8; 20], vec![MOST + 1; 2], vec![100; 600]].concat();
        read(&pages, &Arc::new(mixed)).await;
    }

    #[test]
    fn what_is_no_page_is_left_as_it_is() {
        let of = |method, uri: &str| page(&method, &uri.parse().unwrap());
        assert_eq!(of(Method::GET, "/api/v1/pods?limit=7"), Some(("/api/v1/pods?".to_owned(), 7)));
        assert_eq!(of(Method::GET, LIST), of(Method::GET, &format!("{LIST}&continue=abc")));
        for uri in ["/api/v1/pods?watch=true", "/api/v1/pods", "/api/v1/pods?limit=0"] {
            assert_eq!(of(Method::GET, uri), None, "{uri}");
        }
        assert_eq!(of(Method::DELETE, LIST), None);
        let pages = Pages::default();
        (0..1000).for_each(|number| pages.note(number.to_string(), 500, 1, MOST));
        assert!(pages.lock().len() <= LISTS);
    }
}
