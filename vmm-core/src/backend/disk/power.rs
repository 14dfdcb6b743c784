//! A simulated drive for tests: calls are made in any order, and what was written can be seen as it would be after the
//! power failed at any instant: what was not flushed is there, or not, or in part, sector by sector.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::image::Image;
use super::job::{Call, Step, perform};
use super::pool::{Ended, Running};

/// A small generator of numbers that look random.
#[derive(Debug, Clone)]
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below.max(1)
    }
}

#[derive(Debug)]
enum What {
    Write {
        offset: u64,
        bytes: Vec<u8>,
    },
    /// The file's new length.
    Extend(u64),
    Sync,
}

#[derive(Debug)]
struct Event {
    /// Events that there were when it was asked for.
    issued: usize,
    file: u64,
    what: What,
}

#[derive(Debug, Default)]
struct Log {
    events: Vec<Event>,
    /// Calls from now on until one fails with this.
    fail: Option<(usize, i32)>,
}

/// A test's hand on the drive.
#[derive(Debug, Clone)]
pub(super) struct Drive {
    log: Arc<Mutex<Log>>,
    seed: u64,
}

thread_local! {
    static CURRENT: RefCell<Option<Drive>> = const { RefCell::new(None) };
}

fn id(image: &Image) -> u64 {
    image.file().metadata().map_or(0, |m| m.ino())
}

/// Notes that a file was made longer.
pub(super) fn extended(image: &Image, length: u64) {
    CURRENT.with_borrow(|drive| {
        if let Some(drive) = drive {
            let mut log = drive.lock();
            let issued = log.events.len();
            log.events.push(Event { issued, file: id(image), what: What::Extend(length) });
        }
    });
}

impl Drive {
    /// The drive of this thread from now on.
    pub fn new(seed: u64) -> Drive {
        let drive = Drive { log: Arc::default(), seed };
        CURRENT.set(Some(drive.clone()));
        drive
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events there were: the instants at which power may fail are from 0 to this.
    pub fn instants(&self) -> usize {
        self.lock().events.len()
    }

    /// Has the call after so many fail with an error number, and all after it, until told otherwise.
    pub fn fail(&self, after: Option<(usize, i32)>) {
        self.lock().fail = after;
    }

    /// What `file` (an inode) holds when power fails after `instant` events, having held `before` at first.
    pub fn after_power_loss(&self, file: u64, before: &[u8], instant: usize, dice: &mut Dice) -> Vec<u8> {
        let log = self.lock();
        let synced = log.events[..instant].iter().filter(|e| e.file == file && matches!(e.what, What::Sync));
        let synced = synced.map(|e| e.issued).max().unwrap_or(0);
        let mut bytes = before.to_vec();
        for (at, event) in log.events.iter().enumerate() {
            // What was on its way may have come through.
            if event.file != file || event.issued > instant || (at >= instant && matches!(event.what, What::Sync)) {
                continue;
            }
            let certain = at < synced;
            if at >= instant && dice.roll(2) == 0 {
                continue;
            }
            match &event.what {
                What::Extend(length) => {
                    if (certain || dice.roll(2) == 0) && *length > bytes.len() as u64 {
                        bytes.resize(*length as usize, 0);
                    }
                }
                What::Write { offset, bytes: data } => {
                    let fate = if certain { 0 } else { dice.roll(3) };
                    for (i, sector) in data.chunks(512).enumerate() {
                        if fate == 0 || (fate == 1 && dice.roll(2) == 0) {
                            let start = *offset as usize + i * 512;
                            let end = start + sector.len();
                            if bytes.len() < end {
                                bytes.resize(end, 0);
                            }
                            bytes[start..end].copy_from_slice(sector);
                        }
                    }
                }
                What::Sync => {}
            }
        }
        bytes
    }
}

struct Pending<T> {
    running: Running<T>,
    call: Call,
    issued: usize,
}

/// Makes the calls of jobs, in any order, when it is waited for.
pub(super) struct Sim<T> {
    drive: Drive,
    dice: Dice,
    pending: Vec<Pending<T>>,
    done: VecDeque<Ended<T>>,
}

impl<T> Sim<T> {
    pub fn new(drive: Drive) -> Sim<T> {
        let dice = Dice(drive.seed | 1);
        Sim { drive, dice, pending: Vec::new(), done: VecDeque::new() }
    }

    pub fn start(&mut self, running: Running<T>) {
        self.step(running);
    }

    fn step(&mut self, mut running: Running<T>) {
        match running.job.next(&running.image) {
            Step::Call(call) => {
                let issued = self.drive.lock().events.len();
                self.pending.push(Pending { running, call, issued });
            }
            Step::Done(result) => {
                let Running { tag, .. } = running;
                self.done.push_back((tag, result));
            }
        }
    }

    pub fn completed(&mut self) -> Option<Ended<T>> {
        self.done.pop_front()
    }

    /// Makes one call at least, and until a job has ended.
    pub fn wait(&mut self) {
        while self.done.is_empty() && !self.pending.is_empty() {
            let at = self.dice.roll(self.pending.len() as u64) as usize;
            let Pending { mut running, call, issued } = self.pending.swap_remove(at);
            let result = self.make(&running.image, call, issued);
            running.job.result(&running.image, result);
            self.step(running);
        }
    }

    fn make(&mut self, image: &Image, call: Call, issued: usize) -> Result<usize, i32> {
        if !matches!(call, Call::Read { .. }) {
            let mut log = self.drive.lock();
            match &mut log.fail {
                Some((0, errno)) => return Err(*errno),
                Some((left, _)) => *left -= 1,
                None => {}
            }
        }
        let result = perform(call, image);
        let what = match (call, result) {
            (Call::Write { runs, count, offset }, Ok(written)) => {
                let mut bytes = Vec::new();
                for i in 0..count as usize {
                    // SAFETY: the runs are good until the job hears of the result, and no guest runs in these tests.
                    let run = unsafe { *runs.add(i) };
                    // SAFETY: as above.
                    bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(run.iov_base.cast(), run.iov_len) });
                }
                bytes.truncate(written);
                Some(What::Write { offset, bytes })
            }
            (Call::Sync, Ok(_)) => Some(What::Sync),
            (Call::Allocate { offset, len, .. }, Ok(_)) => {
                let end = (offset + len).min(image.file().metadata().map_or(0, |m| m.len()));
                Some(What::Write { offset, bytes: vec![0; end.saturating_sub(offset) as usize] })
            }
            _ => None,
        };
        if let Some(what) = what {
            self.drive.lock().events.push(Event { issued, file: id(image), what });
        }
        result
    }
}
