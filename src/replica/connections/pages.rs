//! Lists in pages that fit into memory.
//!
//! A list is asked for in pages of up to 500 objects, and a page is in memory as a whole, once as it was answered and once as
//! what it says. Of objects of 1 MB that is a gigabyte. So the first page of a list is small, and each further one as large
//! as the one before allows: it asks for as many objects as weigh [`TARGET`], if they weigh as much each. Who lists sees the
//! same pages that any API server may answer with.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response, Uri};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use tower::{BoxError, Service};

use super::parameters;

/// Objects of the first page.
const FIRST: u64 = 16;
/// Bytes that a further page shall have.
const TARGET: u64 = 4 << 20;
/// A page has no more than so many times the objects of the one before: others may weigh more.
const GROWTH: u64 = 4;
/// Lists that are told apart; a client has a handful, and a list that is forgotten begins small again.
const LISTS: usize = 64;

/// The next page of each list, by what is listed.
#[derive(Clone, Default)]
pub(super) struct Pages(Arc<Mutex<HashMap<String, u64>>>);

impl Pages {
    /// The address of a smaller page, where that is asked for, and whose list it is: as it is remembered, and how many objects
    /// are asked for.
    fn cut(&self, method: &Method, uri: &Uri) -> Option<(Uri, String, u64)> {
        if method != Method::GET {
            return None;
        }
        let asked = parameters(uri).find_map(|pair| pair.strip_prefix("limit="))?.parse::<u64>().ok()?;
        let is_first = !parameters(uri).any(|pair| pair.starts_with("continue="));
        let of_page = |pair: &&str| pair.starts_with("limit=") || pair.starts_with("continue=");
        let others: Vec<_> = parameters(uri).filter(|pair| !of_page(pair)).collect();
        let list = format!("{}?{}", uri.path(), others.join("&"));
        let next = self.lock().get(&list).copied().filter(|_| !is_first).unwrap_or(FIRST);
        let count = asked.min(next);
        let limit = format!("limit={count}");
        let pairs = parameters(uri).filter(|pair| !pair.starts_with("limit=")).chain([limit.as_str()]);
        let query = pairs.collect::<Vec<_>>().join("&");
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(format!("{}?{query}", uri.path()).parse().ok()?);
        Some((Uri::from_parts(parts).ok()?, list, count))
    }

    /// A page of so many objects had so many bytes.
    fn note(&self, list: String, count: u64, bytes: u64) {
        let mut lists = self.lock();
        if lists.len() >= LISTS && !lists.contains_key(&list) {
            lists.clear();
        }
        let fits = TARGET.saturating_mul(count) / bytes.max(1);
        lists.insert(list, fits.clamp(1, count.saturating_mul(GROWTH)));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks for lists in such pages.
#[derive(Clone)]
pub(super) struct Paged<S> {
    pub(super) inner: S,
    pub(super) pages: Pages,
}

impl<S, B, R> Service<Request<B>> for Paged<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = BoxError, Future: Send + 'static>,
{
    type Response = Response<Counted<R>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let page = self.pages.cut(request.method(), request.uri()).map(|(uri, list, count)| {
            *request.uri_mut() = uri;
            Page { pages: self.pages.clone(), list, count, bytes: 0 }
        });
        let answer = self.inner.call(request);
        async move { Ok(answer.await?.map(|body| Counted { body, page })) }.boxed()
    }
}

/// A page that is being read.
struct Page {
    pages: Pages,
    list: String,
    count: u64,
    bytes: u64,
}

/// The body of an answer, whose bytes are counted if it is a page.
pub(super) struct Counted<R> {
    body: R,
    page: Option<Page>,
}

impl<R> Body for Counted<R>
where
    R: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Ready(Some(Ok(frame))), Some(page)) = (&polled, &mut self.page) {
            page.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<R> Drop for Counted<R> {
    fn drop(&mut self) {
        if let Some(Page { pages, list, count, bytes }) = self.page.take() {
            pages.note(list, count, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "https://host/apis/e.com/v1/widgets?labelSelector=a%3Db&limit=500";

    /// What a page asks for, if all objects weigh so much.
    fn pages(weight: u64, count: usize) -> Vec<u64> {
        let pages = Pages::default();
        let page = |number: usize| {
            let next = if number == 0 { String::new() } else { format!("&continue=t{number}") };
            let (uri, list, count) = pages.cut(&Method::GET, &format!("{LIST}{next}").parse().unwrap()).unwrap();
            assert!(uri.to_string().ends_with(&format!("{next}&limit={count}")), "{uri}");
            pages.note(list, count, count * weight);
            count
        };
        (0..count).map(page).collect()
    }

    #[test]
    fn the_first_page_is_small_and_the_others_are_as_large_as_what_it_shows_allows() {
        assert_eq!(pages(1000, 5), [16, 64, 256, 500, 500]);
        assert_eq!(pages(64 << 10, 3), [16, 64, 64]);
        assert_eq!(pages(1 << 20, 3), [16, 4, 4]);
        assert_eq!(pages(8 << 20, 3), [16, 1, 1]);
    }

    #[test]
    fn a_new_list_begins_small_and_what_is_no_list_is_left_as_it_is() {
        let pages = Pages::default();
        let first = |uri: &str| pages.cut(&Method::GET, &uri.parse().unwrap()).map(|(_, list, count)| (list, count));
        let (list, count) = first(LIST).unwrap();
        assert_eq!(count, FIRST);
        pages.note(list, count, 100);
        assert_eq!(first(LIST).unwrap().1, FIRST);
        assert_eq!(first("https://host/api/v1/pods?limit=1").unwrap().1, 1);
        assert_eq!(first("https://host/api/v1/pods?watch=true"), None);
        assert!(pages.cut(&Method::DELETE, &LIST.parse().unwrap()).is_none());
        for number in 0..1000 {
            pages.note(number.to_string(), 1, 1);
        }
        assert!(pages.lock().len() <= LISTS);
    }
}
