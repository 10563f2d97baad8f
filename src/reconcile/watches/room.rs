//! How much may be kept of what is watched, in bytes of text: of the children of a shard, over all of their types, and of
//! each query for related objects. No IO.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// What may be related, in bytes of text: what is kept of one query, and what the expressions of a kind may look at.
pub(in crate::reconcile) const RELATED: u64 = 32 << 20;

/// All rooms of a replica. Clones are handles on the same.
#[derive(Clone, Default)]
pub(super) struct Rooms(Arc<Mutex<HashMap<Arc<str>, Limited>>>);

#[derive(Default)]
struct Limited {
    room: Arc<Room>,
    /// What each kind of the shard adds to it.
    limits: BTreeMap<String, u64>,
}

impl Rooms {
    /// Sets what a kind adds to the room of its shard.
    pub(super) fn limit(&self, shard: &str, kind: &str, bytes: u64) {
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let limited = rooms.entry(Arc::from(shard)).or_default();
        limited.limits.insert(kind.to_owned(), bytes);
        let all = limited.limits.values().copied().fold(0, u64::saturating_add);
        limited.room.limit.store(all, Ordering::Relaxed);
    }

    /// The room of a shard; one that has no limit is as large as it likes.
    pub(super) fn of(&self, shard: &Arc<str>) -> Arc<Room> {
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&rooms.entry(Arc::clone(shard)).or_default().room)
    }

    /// The room of one query for related objects.
    pub(super) fn of_related(&self) -> Arc<Room> {
        let room = Room::default();
        room.limit.store(RELATED, Ordering::Relaxed);
        Arc::new(room)
    }
}

/// So much may be kept in it.
pub(super) struct Room {
    limit: AtomicU64,
    used: AtomicU64,
    /// For how many objects there is none.
    missing: AtomicUsize,
}

impl Default for Room {
    fn default() -> Self {
        Self { limit: AtomicU64::new(u64::MAX), used: AtomicU64::default(), missing: AtomicUsize::default() }
    }
}

impl Room {
    /// Takes room for so many bytes, until what is returned is dropped; `Err`: there is none, and that is counted as long.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<Taken, Taken> {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= limit);
        let room = Arc::clone(self);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Taken { room, bytes: Some(bytes) }),
            Err(_) => {
                self.missing.fetch_add(1, Ordering::Relaxed);
                Err(Taken { room, bytes: None })
            }
        }
    }

    /// For how many objects there is no room.
    pub(super) fn missing(&self) -> usize {
        self.missing.load(Ordering::Relaxed)
    }
}

/// Some room, or that there was none.
pub(super) struct Taken {
    room: Arc<Room>,
    bytes: Option<u64>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        match self.bytes {
            Some(bytes) => _ = self.room.used.fetch_sub(bytes, Ordering::Relaxed),
            None => _ = self.room.missing.fetch_sub(1, Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_full_until_something_leaves_it() {
        let rooms = Rooms::default();
        let shard = Arc::from("web");
        rooms.limit("web", "WebApp", 60);
        rooms.limit("web", "Site", 40);
        rooms.limit("web", "WebApp", 60);
        let room = rooms.of(&shard);
        let first = room.take(70).ok().unwrap();
        let none = room.take(31).err().unwrap();
        assert!(room.take(30).is_ok());
        assert_eq!(room.missing(), 1);
        drop((first, none));
        assert_eq!((room.missing(), room.take(100).is_ok()), (0, true));
        assert!(rooms.of(&Arc::from("other")).take(u64::MAX).is_ok(), "a shard of another is its own");
        assert!(rooms.of_related().take(RELATED + 1).is_err());
    }
}
