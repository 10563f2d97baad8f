//! TCP connections that end by themselves: by the kernel when nothing is acknowledged, by us when nothing is heard.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep},
};
use tower::{BoxError, Service};

use super::Bounds;

/// The kernel asks an idle peer whether it is still there: after this, and again after as long.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// So many questions may stay without an answer.
const KEEPALIVE_RETRIES: u32 = 2;

/// A socket of which the kernel can be told how long to try.
pub(in crate::replica) trait Socket {
    /// The kernel gives the connection up when what was sent is not acknowledged for this long, a millisecond at least.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn give_up_after(&self, unacknowledged: Duration) -> io::Result<()>;

    /// What it was told at first.
    fn gives_up_after(&self) -> Duration;
}

/// Opens TCP connections.
#[derive(Clone)]
pub(super) struct Dialer {
    http: HttpConnector,
    bounds: Bounds,
    discard: bool,
}

impl Dialer {
    /// `discard`: what the kernel still buffers when a connection is dropped is thrown away instead of sent.
    pub(super) fn new(bounds: Bounds, discard: bool) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(bounds.connect));
        http.set_keepalive(Some(KEEPALIVE));
        http.set_keepalive_interval(Some(KEEPALIVE));
        http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        http.set_tcp_user_timeout(Some(bounds.unacknowledged));
        Self { http, bounds, discard }
    }
}

impl Service<Uri> for Dialer {
    type Response = Silent;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Silent, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (dialing, bounds, discard) = (self.http.call(uri), self.bounds, self.discard);
        Box::pin(async move {
            let stream = dialing.await?;
            if discard {
                stream.inner().set_zero_linger()?;
            }
            Ok(Silent::new(stream, bounds))
        })
    }
}

/// A connection that fails when it has been silent for too long.
pub(in crate::replica) struct Silent<I = TokioIo<TcpStream>> {
    inner: I,
    bounds: Bounds,
    fails: Pin<Box<Sleep>>,
}

impl<I> Silent<I> {
    pub(super) fn new(inner: I, bounds: Bounds) -> Self {
        Self { inner, bounds, fails: Box::pin(tokio::time::sleep(bounds.silence)) }
    }

    /// Tells a sound from silence.
    #[expect(clippy::disallowed_methods, reason = "the clock of the timer, and nothing of a term is decided by it")]
    fn sound<T>(&mut self, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(moved, Poll::Ready(Ok(_))) {
            self.fails.as_mut().reset(Instant::now() + self.bounds.silence);
        }
        moved
    }
}

impl Silent {
    #[cfg(test)]
    pub(super) fn socket(&self) -> &TcpStream {
        self.inner.inner()
    }
}

impl Socket for Silent {
    fn give_up_after(&self, unacknowledged: Duration) -> io::Result<()> {
        let millis = u32::try_from(unacknowledged.as_millis()).unwrap_or(u32::MAX).max(1);
        Ok(rustix::net::sockopt::set_tcp_user_timeout(self.inner.inner(), millis)?)
    }

    fn gives_up_after(&self) -> Duration {
        self.bounds.unacknowledged
    }
}

impl<I: Connection> Connection for Silent<I> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

impl<I: Read + Unpin> Read for Silent<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Looked at first: after a pause of the process there may be something, however late it is.
        let read = Pin::new(&mut this.inner).poll_read(cx, buffer);
        if this.sound(read)?.is_ready() {
            return Poll::Ready(Ok(()));
        }
        this.fails.as_mut().poll(cx).map(|()| {
            let error = format!("the API server has been silent for {:?}", this.bounds.silence);
            Err(io::Error::new(io::ErrorKind::TimedOut, error))
        })
    }
}

impl<I: Write + Unpin> Write for Silent<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.sound(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, buffers);
        this.sound(written)
    }
}
