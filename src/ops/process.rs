//! What this process takes of its machine, as every Prometheus client tells it.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Linux shows times of a process in hundredths of a second, whatever its clock ticks by.
const TICKS: f64 = 100.0;

/// Bytes of memory that are in use now, without what is swapped out; `None` where the kernel does not say so.
pub(super) fn memory() -> Option<u64> {
    size(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

fn size(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Seconds of processor time used, and when the process began, in seconds after the machine.
fn times(stat: &str) -> Option<(f64, f64)> {
    // The name of the program, in brackets, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some(((ticks(11)? + ticks(12)?) / TICKS, ticks(19)? / TICKS))
}

/// When the machine began, in seconds since 1970.
fn booted(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The most files that may be open.
fn most_files(limits: &str) -> Option<f64> {
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

/// Reads all of it when metrics are asked for. What the kernel does not say has no series.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let read = |file: &str| fs::read_to_string(format!("/proc/{file}")).unwrap_or_default();
        let (status, times) = (read("self/status"), times(&read("self/stat")));
        let bytes = |field| size(&status, field).and_then(|bytes| u32::try_from(bytes >> 10).ok()).map(f64::from);
        let bytes = |field| bytes(field).map(|kibibytes| kibibytes * 1024.0);
        let files = fs::read_dir("/proc/self/fd").ok().and_then(|files| u32::try_from(files.count()).ok());
        if let Some((used, _)) = times {
            let seconds = Some(&Unit::Seconds);
            let help = "Processor time that the process has used, of the user and of the system";
            let metric = encoder.encode_descriptor("process_cpu", help, seconds, MetricType::Counter)?;
            ConstCounter::new(used).encode(metric)?;
        }
        for (name, unit, help, value) in [
            (
                "process_resident_memory",
                Some(Unit::Bytes),
                "Memory that the process has in use, without what is swapped out",
                bytes("VmRSS:"),
            ),
            ("process_virtual_memory", Some(Unit::Bytes), "Addresses that the process has reserved", bytes("VmSize:")),
            ("process_open_fds", None, "Files and connections that the process has open", files.map(f64::from)),
            (
                "process_max_fds",
                None,
                "The most files and connections that the process may have open",
                most_files(&read("self/limits")),
            ),
            (
                "process_start_time",
                Some(Unit::Seconds),
                "When the process began, since 1970",
                times.zip(booted(&read("stat"))).map(|((_, after), booted)| booted + after),
            ),
        ] {
            if let Some(value) = value {
                let metric = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
                ConstGauge::new(value).encode(metric)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_much_memory_is_in_use() {
        let status = "VmPeak:\t 9000 kB\nVmSize:\t 8192 kB\nVmRSS:\t    2048 kB\nVmSwap:\t 7 kB\n";
        assert_eq!((size(status, "VmRSS:"), size(status, "VmSize:")), (Some(2 << 20), Some(8 << 20)));
        assert_eq!(size("VmRSS:\tunknown\n", "VmRSS:"), None);
        assert!(memory().is_none_or(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn the_name_of_the_program_does_not_shift_what_the_kernel_says_of_its_times() {
        let stat = "42 (a) R 7 8) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 8 0 12300 1 2";
        assert_eq!(times(stat), Some((2.0, 123.0)));
        assert_eq!(booted("cpu 1 2\nbtime 1700000000\nprocesses 3\n"), Some(1_700_000_000.0));
        assert_eq!(most_files("Limit  Soft  Hard\nMax open files   1024   4096   files\n"), Some(1024.0));
        assert_eq!(most_files("Max open files   unlimited   unlimited   files\n"), None);
    }
}
