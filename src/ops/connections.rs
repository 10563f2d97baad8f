//! Which connections a server keeps when more come than it has places for, and which requests a peer may make.
//!
//! Every Pod of the cluster may be able to connect. A place is taken from the peer that has the most of them, so that a
//! flood from one address closes its own connections, and a probe of the kubelet or an API server keeps the one it has.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    future::Future,
    io,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{
    StreamExt as _,
    future::{AbortHandle, abortable},
    stream::FuturesUnordered,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Says whether a connection is of use: one that is not is closed first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Useful(Arc<AtomicBool>);

impl Useful {
    pub(crate) fn set(&self, useful: bool) {
        self.0.store(useful, Ordering::Relaxed);
    }
}

/// Why a connection is closed for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crowded {
    /// Its peer has as many as one may have.
    Peer,
    /// All peers together have as many as there may be.
    All,
}

impl Crowded {
    /// For metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::All => "all",
        }
    }
}

struct Place {
    number: u64,
    peer: IpAddr,
    useful: Useful,
    handle: AbortHandle,
}

/// The open connections of a server, the oldest first.
pub(crate) struct Places {
    most: usize,
    of_a_peer: usize,
    open: VecDeque<Place>,
    next: u64,
}

impl Places {
    /// So many at a time, and so many of one peer.
    pub(crate) fn new(most: usize, of_a_peer: usize) -> Self {
        Self { most: most.max(1), of_a_peer: of_a_peer.max(1), open: VecDeque::new(), next: 0 }
    }

    /// Closes one if there is no place for another of this peer, and says why.
    pub(crate) fn make_room(&mut self, peer: IpAddr) -> Option<Crowded> {
        let mut count = HashMap::<IpAddr, usize>::new();
        self.open.iter().for_each(|place| *count.entry(place.peer).or_default() += 1);
        let of = |peer: &IpAddr| count.get(peer).copied().unwrap_or_default();
        let why = match of(&peer) >= self.of_a_peer {
            true => Crowded::Peer,
            false if self.open.len() >= self.most => Crowded::All,
            false => return None,
        };
        let rank = |place: &Place| (place.useful.0.load(Ordering::Relaxed), Reverse(of(&place.peer)), place.number);
        let candidates = self.open.iter().enumerate().filter(|(_, it)| why == Crowded::All || it.peer == peer);
        let closed = candidates.min_by_key(|(_, place)| rank(place)).map(|(at, _)| at)?;
        self.open.remove(closed)?.handle.abort();
        Some(why)
    }

    /// Gives a connection a place; its number is for [`leave`](Self::leave).
    pub(crate) fn take(&mut self, peer: IpAddr, useful: Useful, handle: AbortHandle) -> u64 {
        let number = self.next;
        self.next += 1;
        self.open.push_back(Place { number, peer, useful, handle });
        number
    }

    /// A connection has ended.
    pub(crate) fn leave(&mut self, number: u64) {
        self.open.retain(|place| place.number != number);
    }
}

/// Serves each connection until `shutdown` resolves; then cancels `stop`, takes no new one, and waits for the last to end.
/// `crowded` hears of each that is closed for a newer one. Dropping the future closes all connections.
pub(crate) async fn serve_all<C: Future<Output = ()>>(
    listener: TcpListener,
    mut places: Places,
    crowded: impl Fn(Crowded),
    shutdown: impl Future<Output = ()>,
    stop: &CancellationToken,
    connection: impl Fn(TcpStream, IpAddr, Useful) -> C,
) {
    let mut shutdown = pin!(shutdown);
    let mut open = FuturesUnordered::new();
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some((ended, _)) = open.next() => {
                places.leave(ended);
                continue;
            }
            accepted = accept(&listener) => accepted,
        };
        if let Some(why) = places.make_room(peer) {
            crowded(why);
        }
        let useful = Useful::default();
        let (connection, handle) = abortable(connection(stream, peer, useful.clone()));
        let number = places.take(peer, useful, handle);
        open.push(async move { (number, connection.await) });
    }
    drop(listener);
    stop.cancel();
    while open.next().await.is_some() {}
}

/// The next connection, and whose it is: what keeps one from being accepted passes.
pub(super) async fn accept(listener: &TcpListener) -> (TcpStream, IpAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer.ip().to_canonical()),
            // The client has gone before it was its turn.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Such as too many open files: it passes when some are closed.
                warn!("cannot accept connections: {error}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// More peers than that make no flood by one of them: what is known of each is forgotten.
const PEERS: usize = 1024;

/// How many requests each peer may make: so many at once, and then so many a second.
#[derive(Debug)]
pub(crate) struct Pace {
    burst: f64,
    per_second: f64,
    /// What is left to each, and since when.
    left: HashMap<IpAddr, (f64, Instant)>,
}

impl Pace {
    pub(crate) fn new(burst: u32, per_second: u32) -> Self {
        Self { burst: burst.max(1).into(), per_second: per_second.max(1).into(), left: HashMap::new() }
    }

    /// Whether one more request of a peer is within its pace.
    pub(crate) fn allows(&mut self, peer: IpAddr, now: Instant) -> bool {
        if self.left.len() >= PEERS && !self.left.contains_key(&peer) {
            let full = Duration::from_secs_f64(self.burst / self.per_second);
            self.left.retain(|_, (_, at)| now.saturating_duration_since(*at) < full);
            if self.left.len() >= PEERS {
                self.left.clear();
            }
        }
        let (left, at) = self.left.entry(peer).or_insert((self.burst, now));
        let regained = now.saturating_duration_since(*at).as_secs_f64() * self.per_second;
        *left = (*left + regained).min(self.burst);
        *at = now;
        let allowed = *left >= 1.0;
        if allowed {
            *left -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    /// Connections of these peers, in this order.
    fn open(places: &mut Places, peers: &[u8]) -> Vec<(AbortHandle, Useful)> {
        let open = |number: &u8| {
            let (useful, handle) = (Useful::default(), AbortHandle::new_pair().0);
            places.take(peer(*number), useful.clone(), handle.clone());
            (handle, useful)
        };
        peers.iter().map(open).collect()
    }

    fn closed(of: &[(AbortHandle, Useful)]) -> Vec<usize> {
        of.iter().enumerate().filter(|(_, (handle, _))| handle.is_aborted()).map(|(at, _)| at).collect()
    }

    #[test]
    fn a_place_is_taken_from_the_peer_that_has_the_most() {
        let mut places = Places::new(4, 3);
        let all = open(&mut places, &[1, 2, 2, 3]);
        assert_eq!(places.make_room(peer(3)), Some(Crowded::All));
        assert_eq!(closed(&all), [1], "the oldest of peer 2, and not that of peer 1");
        assert_eq!(places.make_room(peer(3)), None);
    }

    #[test]
    fn a_peer_that_has_its_share_closes_its_own_oldest_that_is_of_no_use() {
        let mut places = Places::new(10, 2);
        let all = open(&mut places, &[1, 2, 2, 3]);
        all[1].1.set(true);
        assert_eq!(places.make_room(peer(2)), Some(Crowded::Peer));
        assert_eq!(closed(&all), [2]);
        places.leave(1);
        assert_eq!(places.make_room(peer(2)), None);
    }

    #[test]
    fn what_is_of_use_goes_last() {
        let mut places = Places::new(3, 3);
        let all = open(&mut places, &[2, 2, 1]);
        all[0].1.set(true);
        all[1].1.set(true);
        assert_eq!(places.make_room(peer(3)), Some(Crowded::All));
        assert_eq!(closed(&all), [2]);
        let more = open(&mut places, &[3]);
        more[0].1.set(true);
        assert_eq!(places.make_room(peer(4)), Some(Crowded::All));
        assert_eq!(closed(&all), [0, 2], "of those of use the oldest of the peer that has two");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_has_a_pace_of_its_own_and_many_peers_no_memory() {
        #[expect(clippy::disallowed_methods, reason = "the clock of the test stands still")]
        let now = Instant::now();
        let mut pace = Pace::new(3, 2);
        let asked = |pace: &mut Pace, of, now| (0..10).filter(|_| pace.allows(peer(of), now)).count();
        assert_eq!((asked(&mut pace, 1, now), asked(&mut pace, 2, now)), (3, 3));
        assert_eq!(asked(&mut pace, 1, now + Duration::from_secs(1)), 2);
        assert_eq!(asked(&mut pace, 1, now + Duration::from_secs(100)), 3);
        for number in 0..5000_u32 {
            pace.allows(IpAddr::from(number.to_be_bytes()), now);
        }
        assert!(pace.left.len() <= PEERS);
    }
}
