//! Hashes that are the same on every replica, whatever it was compiled with.
//!
//! Not std's `DefaultHasher`: replicas of different versions must agree, and that one may change with the compiler.

/// A number that changes when the bytes do. FNV-1a, because it must stay the same from one release to the next:
/// by another number, replicas would place kinds differently, and a new leader would write every child.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The [hash](fnv1a) as text, with its name: objects and statuses bear it.
pub fn digest(bytes: impl IntoIterator<Item = u8>) -> String {
    format!("fnv1a:{:016x}", fnv1a(bytes))
}

/// The hash of a name, mixed and odd, so that a product with it loses nothing.
pub(super) fn name_hash(name: &str) -> u64 {
    mix(fnv1a(name.bytes())) | 1
}

/// The last steps of splitmix64: each bit of the input changes about half of the output's.
pub(super) fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
