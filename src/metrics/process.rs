//! Figures of the process and its event loop, read when they are asked for. Their names are those that Prometheus'
//! clients have in common.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use tokio::runtime::Handle;

/// Declares the figures of this process and of the event loop that this is called on.
pub(super) fn declare(registry: &mut Registry) {
    registry.register_collector(Box::new(Process {
        started: SystemTime::now(),
        runtime: Handle::try_current().ok(),
    }));
}

#[derive(Debug)]
struct Process {
    started: SystemTime,
    runtime: Option<Handle>,
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut figures = Figures(encoder);
        figures.gauge(
            "process_start_time",
            "When the process started, in Unix time",
            Some(Unit::Seconds),
            super::unix(self.started),
        )?;
        if let Some(runtime) = &self.runtime {
            event_loop(runtime, &mut figures)?;
        }
        of_the_system(&mut figures)
    }
}

struct Figures<'a>(DescriptorEncoder<'a>);

impl Figures<'_> {
    fn gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: f64) -> fmt::Result {
        let descriptor = self
            .0
            .encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        ConstGauge::new(value).encode(descriptor)
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let unit = Some(&Unit::Seconds);
        let descriptor = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Counter)?;
        ConstCounter::new(value).encode(descriptor)
    }
}

fn event_loop(runtime: &Handle, figures: &mut Figures<'_>) -> fmt::Result {
    let metrics = runtime.metrics();
    let workers = metrics.num_workers();
    let busy: Duration = (0..workers)
        .map(|worker| metrics.worker_total_busy_duration(worker))
        .sum();
    figures.gauge(
        "tokio_workers",
        "Threads of the event loop",
        None,
        workers as f64,
    )?;
    figures.seconds(
        "tokio_busy",
        "Time that they were not idle",
        busy.as_secs_f64(),
    )?;
    let alive = metrics.num_alive_tasks();
    figures.gauge(
        "tokio_tasks",
        "Tasks that have not ended",
        None,
        alive as f64,
    )?;
    let queued = metrics.global_queue_depth();
    figures.gauge(
        "tokio_queued_tasks",
        "Tasks that wait for a thread",
        None,
        queued as f64,
    )
}

/// Where a figure cannot be read, it is left out.
#[cfg(target_os = "linux")]
fn of_the_system(figures: &mut Figures<'_>) -> fmt::Result {
    use procfs::{
        WithCurrentSystemInfo,
        process::{LimitValue, Process},
    };

    let Ok(process) = Process::myself() else {
        return Ok(());
    };
    if let Ok(stat) = process.stat() {
        let ticks = (stat.utime + stat.stime) as f64;
        figures.seconds(
            "process_cpu",
            "Processor time, of user and system",
            ticks / procfs::ticks_per_second() as f64,
        )?;
        let resident = stat.rss_bytes().get() as f64;
        let bytes = || Some(Unit::Bytes);
        figures.gauge(
            "process_resident_memory",
            "Resident memory",
            bytes(),
            resident,
        )?;
        figures.gauge(
            "process_virtual_memory",
            "Virtual memory",
            bytes(),
            stat.vsize as f64,
        )?;
        figures.gauge("process_threads", "Threads", None, stat.num_threads as f64)?;
    }
    if let Ok(open) = process.fd_count() {
        figures.gauge(
            "process_open_fds",
            "Open file descriptors",
            None,
            open as f64,
        )?;
    }
    if let Ok(LimitValue::Value(most)) = process
        .limits()
        .map(|limits| limits.max_open_files.soft_limit)
    {
        figures.gauge(
            "process_max_fds",
            "The most open file descriptors",
            None,
            most as f64,
        )?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn of_the_system(_: &mut Figures<'_>) -> fmt::Result {
    Ok(())
}
