//! The threads that run devices: each waits on the descriptors of its tasks and runs whichever is ready.
//!
//! Readiness is edge-triggered: a task that does not drain a descriptor hears of it again only when more comes. So no
//! task reads a doorbell's counter, and one that can't go on (no buffers) simply returns.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Something that waits on descriptors and acts when one is ready. Runs on one thread.
pub trait Task: Send {
    /// What it waits on, each with the token it is told. Asked once; the descriptors stay open until it has stopped.
    fn descriptors(&self) -> Vec<(RawFd, u32)>;
    /// Called once, on the thread, before anything else.
    fn start(&mut self) {}
    /// The descriptor of `token` became readable, or closed.
    fn ready(&mut self, token: u32);
    /// It will not be called again: gives its parts back to whoever owns them.
    fn stopped(self: Box<Self>);
}

/// Names a task of one executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TaskId(u64);

/// Runs tasks. None of its calls waits for a task.
pub trait Executor: Send + Sync {
    /// Starts a task.
    fn submit(&self, task: Box<dyn Task>) -> TaskId;
    /// Asks a task to stop; [`Task::stopped`] tells when it has. A task that is gone is no error.
    fn stop(&self, id: TaskId);
    /// Waits until everything asked before has been done. Never called from a task or a vCPU.
    fn flush(&self);
}

enum Message {
    Submit(TaskId, Box<dyn Task>),
    Stop(TaskId),
    Flush(Sender<()>),
    Quit,
}

/// The descriptor number of the mailbox in epoll data; tasks' entries count from 0.
const MAILBOX: u64 = u64::MAX;

struct Reactor {
    epoll: Epoll,
    mailbox: Receiver<Message>,
    tasks: HashMap<TaskId, (Box<dyn Task>, Vec<u64>)>,
    entries: HashMap<u64, (TaskId, u32, OwnedFd)>,
    next_entry: u64,
}

impl Reactor {
    fn new(bell: &EventFd, mailbox: Receiver<Message>) -> io::Result<Reactor> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, MAILBOX);
        epoll.ctl(ControlOperation::Add, bell.as_raw_fd(), event)?;
        Ok(Reactor { epoll, mailbox, tasks: HashMap::new(), entries: HashMap::new(), next_entry: 0 })
    }

    fn insert(&mut self, id: TaskId, mut task: Box<dyn Task>) {
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let mut own = Vec::new();
        for (fd, token) in task.descriptors() {
            let entry = self.next_entry;
            self.next_entry += 1;
            // SAFETY: the task keeps its descriptors open until it has stopped.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            // A copy of its own, for two tasks may wait on the same descriptor, which epoll knows only once.
            let Ok(fd) = fd.try_clone_to_owned() else { continue };
            // A descriptor that can't be polled (a regular file) is always ready and needs no waiting.
            if self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(events, entry)).is_ok() {
                self.entries.insert(entry, (id, token, fd));
                own.push(entry);
            }
        }
        task.start();
        self.tasks.insert(id, (task, own));
    }

    fn remove(&mut self, id: TaskId) {
        if let Some((task, own)) = self.tasks.remove(&id) {
            for entry in own {
                if let Some((_, _, fd)) = self.entries.remove(&entry) {
                    let _ = self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default());
                }
            }
            task.stopped();
        }
    }

    /// Does what the mailbox asks. False: the thread is to end.
    fn read_mail(&mut self) -> bool {
        while let Ok(message) = self.mailbox.try_recv() {
            match message {
                Message::Submit(id, task) => self.insert(id, task),
                Message::Stop(id) => self.remove(id),
                Message::Flush(done) => drop(done.send(())),
                Message::Quit => return false,
            }
        }
        true
    }

    /// Waits up to `timeout` ms (-1: for ever) and runs what is ready. `Some(0)`: nothing was; `None`: end.
    fn turn(&mut self, timeout: i32) -> Option<usize> {
        let mut events = [EpollEvent::default(); 32];
        let count = match self.epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => return None,
        };
        for event in &events[..count] {
            if event.data() == MAILBOX {
                if !self.read_mail() {
                    return None;
                }
            } else if let Some((id, token, _)) = self.entries.get(&event.data())
                && let Some((task, _)) = self.tasks.get_mut(id)
            {
                task.ready(*token);
            }
        }
        Some(count)
    }

    fn stop_all(&mut self) {
        let ids: Vec<_> = self.tasks.keys().copied().collect();
        for id in ids {
            self.remove(id);
        }
    }
}

/// The sending end of a reactor's mailbox.
struct Mailbox {
    sender: Mutex<Sender<Message>>,
    bell: EventFd,
    next_id: AtomicU64,
}

impl Mailbox {
    fn new() -> io::Result<(Mailbox, Reactor)> {
        let (sender, receiver) = mpsc::channel();
        let bell = EventFd::new(EFD_NONBLOCK)?;
        let reactor = Reactor::new(&bell, receiver)?;
        Ok((Mailbox { sender: Mutex::new(sender), bell, next_id: AtomicU64::new(0) }, reactor))
    }

    fn post(&self, message: Message) {
        // A thread that is gone has stopped its tasks already.
        let _ = self.sender.lock().unwrap_or_else(PoisonError::into_inner).send(message);
        let _ = self.bell.write(1);
    }

    fn submit(&self, task: Box<dyn Task>) -> TaskId {
        let id = TaskId(self.next_id.fetch_add(1, Ordering::Relaxed));
        self.post(Message::Submit(id, task));
        id
    }
}

/// An executor with a thread of its own, which ends, after stopping its tasks, when this is dropped.
pub struct WorkerThread {
    mailbox: Mailbox,
    thread: Option<JoinHandle<()>>,
}

impl WorkerThread {
    /// Starts the thread. `on_panic` is told when a task panicked: the thread is gone then.
    pub fn spawn(name: &str, on_panic: impl FnOnce() + Send + 'static) -> io::Result<WorkerThread> {
        let (mailbox, mut reactor) = Mailbox::new()?;
        let body = move || {
            let run = std::panic::AssertUnwindSafe(|| {
                while reactor.turn(-1).is_some() {}
                reactor.stop_all();
            });
            if std::panic::catch_unwind(run).is_err() {
                on_panic();
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(body)?;
        Ok(WorkerThread { mailbox, thread: Some(thread) })
    }
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        self.mailbox.post(Message::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Executor for WorkerThread {
    fn submit(&self, task: Box<dyn Task>) -> TaskId {
        self.mailbox.submit(task)
    }

    fn stop(&self, id: TaskId) {
        self.mailbox.post(Message::Stop(id));
    }

    fn flush(&self) {
        let (sender, receiver) = mpsc::channel();
        self.mailbox.post(Message::Flush(sender));
        // An error means that the thread is gone, and with it everything that was asked of it.
        let _ = receiver.recv();
    }
}

/// An executor without a thread: runs what is ready whenever it is turned. For tests and fuzzing.
#[derive(Clone)]
pub struct InlineExecutor {
    mailbox: Arc<Mailbox>,
    reactor: Arc<Mutex<Reactor>>,
}

impl InlineExecutor {
    /// An executor with no tasks.
    pub fn new() -> io::Result<InlineExecutor> {
        let (mailbox, reactor) = Mailbox::new()?;
        Ok(InlineExecutor { mailbox: Arc::new(mailbox), reactor: Arc::new(Mutex::new(reactor)) })
    }

    /// Runs tasks until none is ready, or `limit` rounds have passed. Returns whether it came to rest.
    pub fn turn(&self, limit: usize) -> bool {
        let mut reactor = self.reactor.lock().unwrap_or_else(PoisonError::into_inner);
        (0..limit).any(|_| reactor.turn(0).is_none_or(|count| count == 0))
    }
}

impl Executor for InlineExecutor {
    fn submit(&self, task: Box<dyn Task>) -> TaskId {
        self.mailbox.submit(task)
    }

    fn stop(&self, id: TaskId) {
        self.mailbox.post(Message::Stop(id));
    }

    fn flush(&self) {
        self.turn(64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter {
        bell: EventFd,
        count: Arc<AtomicU64>,
    }

    impl Task for Counter {
        fn descriptors(&self) -> Vec<(RawFd, u32)> {
            vec![(self.bell.as_raw_fd(), 1)]
        }
        fn ready(&mut self, token: u32) {
            self.count.fetch_add(u64::from(token), Ordering::SeqCst);
        }
        fn stopped(self: Box<Self>) {
            self.count.fetch_add(1000, Ordering::SeqCst);
        }
    }

    fn counter() -> (Box<Counter>, EventFd, Arc<AtomicU64>) {
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        let count = Arc::new(AtomicU64::new(0));
        (Box::new(Counter { bell: bell.try_clone().unwrap(), count: count.clone() }), bell, count)
    }

    #[test]
    fn a_task_runs_when_rung_and_gives_itself_back_when_stopped() {
        let executor = InlineExecutor::new().unwrap();
        let (task, bell, count) = counter();
        let id = executor.submit(task);
        executor.flush();
        let before = count.load(Ordering::SeqCst);
        bell.write(1).unwrap();
        executor.flush();
        assert_eq!(count.load(Ordering::SeqCst), before + 1);
        executor.stop(id);
        executor.flush();
        bell.write(1).unwrap();
        executor.flush();
        assert_eq!(count.load(Ordering::SeqCst), before + 1001);
    }

    #[test]
    fn two_tasks_that_wait_on_the_same_descriptor_both_hear() {
        let executor = InlineExecutor::new().unwrap();
        let (first, bell, count) = counter();
        let second = Box::new(Counter { bell: bell.try_clone().unwrap(), count: count.clone() });
        let shared = first.bell.as_raw_fd();
        struct Borrowed(Box<Counter>, RawFd);
        impl Task for Borrowed {
            fn descriptors(&self) -> Vec<(RawFd, u32)> {
                vec![(self.1, 1)]
            }
            fn ready(&mut self, token: u32) {
                self.0.ready(token);
            }
            fn stopped(self: Box<Self>) {}
        }
        executor.submit(first);
        executor.submit(Box::new(Borrowed(second, shared)));
        executor.flush();
        let before = count.load(Ordering::SeqCst);
        bell.write(1).unwrap();
        executor.flush();
        assert_eq!(count.load(Ordering::SeqCst), before + 2);
    }

    #[test]
    fn dropping_a_worker_stops_its_tasks_and_a_panic_is_reported() {
        let (task, _bell, count) = counter();
        let worker = WorkerThread::spawn("test", || ()).unwrap();
        worker.submit(task);
        worker.flush();
        drop(worker);
        assert!(count.load(Ordering::SeqCst) >= 1000);

        struct Panics;
        impl Task for Panics {
            fn descriptors(&self) -> Vec<(RawFd, u32)> {
                vec![]
            }
            fn start(&mut self) {
                panic!("on purpose");
            }
            fn ready(&mut self, _: u32) {}
            fn stopped(self: Box<Self>) {}
        }
        let (sender, receiver) = mpsc::channel();
        let worker = WorkerThread::spawn("test", move || sender.send(()).unwrap()).unwrap();
        worker.submit(Box::new(Panics));
        worker.flush();
        receiver.recv().unwrap();
    }
}
