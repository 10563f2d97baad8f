//! What this process takes of its machine.

use std::fs;

/// Bytes of memory that are in use now, without what is swapped out; `None` where the kernel does not say so.
pub(super) fn memory() -> Option<u64> {
    resident(&fs::read_to_string("/proc/self/status").ok()?)
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_much_memory_is_in_use() {
        assert_eq!(resident("VmPeak:\t 9000 kB\nVmRSS:\t    2048 kB\nVmSwap:\t 7 kB\n"), Some(2 << 20));
        assert_eq!(resident("VmRSS:\tunknown\n"), None);
        assert!(memory().is_none_or(|bytes| bytes > 1 << 20));
    }
}
