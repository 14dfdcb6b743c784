//! Runs one device on an executor: doorbells and sources in, completions and interrupts out.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::device::{Device, Fault, Io};
use super::queue::Queue;
use super::transport::Shared;
use crate::base::Task;

/// The first token of a device's own sources; queues count from 0.
const SOURCES: u32 = 0x1_0000;
/// How often a queue is looked at again before others get their turn.
const MAX_ROUNDS: usize = 8;

pub(super) struct Runner<D: Device> {
    device: D,
    queues: Vec<Queue>,
    features: u64,
    failed: bool,
    shared: Arc<Shared<D>>,
}

impl<D: Device> Runner<D> {
    pub(super) fn new(device: D, queues: Vec<Queue>, features: u64, shared: Arc<Shared<D>>) -> Runner<D> {
        Runner { device, queues, features, failed: false, shared }
    }

    /// Runs `work` on the device, then makes what it did visible to the driver.
    fn run(&mut self, work: impl FnOnce(&mut D, &mut Io<'_>) -> Result<(), Fault>) {
        if self.failed {
            return;
        }
        let signalled = self.work(work).and_then(|()| self.signal());
        if let Err(fault) = signalled {
            self.failed = true;
            self.shared.needs_reset(&fault);
        }
    }

    fn work(&mut self, work: impl FnOnce(&mut D, &mut Io<'_>) -> Result<(), Fault>) -> Result<(), Fault> {
        let (mut problems, mut stalls) = (Vec::new(), Vec::new());
        let memory = self.shared.memory.clone();
        let mut io = Io {
            memory: &memory,
            queues: &mut self.queues,
            features: self.features,
            config_changed: false,
            problems: &mut problems,
            stalls: &mut stalls,
        };
        let worked = work(&mut self.device, &mut io);
        if io.config_changed {
            self.shared.config_interrupt();
        }
        for problem in problems {
            self.shared.problem(problem);
        }
        for stall in stalls {
            self.shared.stall(stall);
        }
        worked
    }

    fn signal(&mut self) -> Result<(), Fault> {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.flush(&self.shared.memory)?;
            if queue.take_interrupt(&self.shared.memory)? {
                self.shared.queue_interrupt(index);
            }
        }
        Ok(())
    }

    fn process(&mut self, index: usize) {
        let shared = self.shared.clone();
        let Some(queue) = self.queues.get_mut(index) else { return };
        let mut seen = match queue.silence(&shared.memory).and_then(|()| queue.offered(&shared.memory)) {
            Ok(seen) => seen,
            Err(fault) => return self.run(|_, _| Err(fault)),
        };
        for _ in 0..MAX_ROUNDS {
            let mut more = Ok(false);
            self.run(|device, io| {
                device.on_queue(index, io)?;
                more = io.queues[index].listen(io.memory, &mut seen);
                more.clone().map(drop)
            });
            if self.failed || more != Ok(true) {
                return;
            }
        }
        // The driver keeps the queue full: let the thread's other devices have a turn, then go on.
        shared.ring(index);
    }
}

impl<D: Device> Task for Runner<D> {
    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        let bells = self.shared.bells.iter().enumerate().map(|(i, bell)| (bell.as_raw_fd(), i as u32));
        let sources = self.device.sources();
        bells.chain(sources.into_iter().map(|s| (s.fd, SOURCES + s.id))).collect()
    }

    fn start(&mut self) {
        self.run(|device, io| device.start(io));
        for index in 0..self.queues.len() {
            self.process(index);
        }
    }

    fn ready(&mut self, token: u32) {
        if token < SOURCES {
            self.process(token as usize);
        } else {
            self.run(|device, io| device.on_source(token - SOURCES, io));
        }
    }

    fn stopped(mut self: Box<Self>) {
        let quiesce = |device: &mut D, io: &mut Io<'_>| {
            device.quiesce(io);
            Ok(())
        };
        if self.failed {
            // Its queues are left alone, but what it has in flight on the host must end.
            let _ = self.work(quiesce);
        } else {
            self.run(quiesce);
        }
        let Runner { device, queues, shared, .. } = *self;
        let states = queues.iter().map(|q| q.state().clone()).collect();
        shared.stopped(device, states);
    }
}
