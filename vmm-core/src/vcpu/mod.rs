//! A virtual CPU's thread: runs the guest, and carries its accesses to the buses.
//!
//! The thread is parked until it is told to run. A kick makes the kernel return from the guest; what to do next comes
//! through the channel, so nothing ever waits on a flag.

use std::cell::Cell;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Once};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuExit;

use crate::hw::{Action, Bus};
use crate::kvm::KvmCpu;

/// The two address spaces that exits go to.
#[derive(Clone)]
pub struct Buses {
    /// Memory-mapped I/O.
    pub memory: Arc<Bus>,
    /// Port I/O.
    pub ports: Arc<Bus>,
}

/// Why a CPU parked itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuEvent {
    /// A device asks for this.
    Action(Action),
    /// The guest can't go on: what happened, a sentence.
    Failed(String),
    /// The guest says that it has crashed (Hyper-V's crash registers), with a code of its own. The CPU goes on: the guest
    /// has something planned, such as writing its memory to disk. Told once between two resets.
    Crashed(u64),
}

/// What a parked CPU can be made to do.
type Job = Box<dyn FnOnce(&mut KvmCpu) + Send>;

enum Message {
    Run,
    Park(Sender<()>),
    Do(Job),
    Exit,
}

/// A CPU's thread.
pub struct VcpuThread {
    messages: Sender<Message>,
    kicked: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts the thread, parked. `events` is called from it.
    pub fn spawn(cpu: KvmCpu, buses: Buses, events: impl Fn(CpuEvent) + Send + 'static) -> io::Result<VcpuThread> {
        install_kick_handler();
        let (messages, inbox) = mpsc::channel();
        let kicked = Arc::new(AtomicBool::new(false));
        let flag = kicked.clone();
        let thread = std::thread::Builder::new().name(format!("vcpu{}", cpu.index())).spawn(move || {
            let body = std::panic::AssertUnwindSafe(|| {
                VcpuLoop { cpu, buses, inbox, kicked: flag, crash_told: false }.run(&events)
            });
            if std::panic::catch_unwind(body).is_err() {
                events(CpuEvent::Failed("a defect in the monitor stopped a CPU's thread".into()));
            }
        })?;
        Ok(VcpuThread { messages, kicked, thread: Some(thread) })
    }

    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        if let Some(thread) = &self.thread {
            // SAFETY: the thread is not joined yet, so its id is valid; the handler of the signal is ours.
            unsafe { libc::pthread_kill(thread.as_pthread_t() as _, kick_signal()) };
        }
    }

    fn send(&self, message: Message) {
        // A thread that is gone has told why.
        let _ = self.messages.send(message);
        self.kick();
    }

    /// Lets the CPU run.
    pub fn run(&self) {
        self.send(Message::Run);
    }

    /// Asks the CPU to stop. The receiver hears when it has, with no access to a device half done.
    pub fn park(&self) -> Receiver<()> {
        let (done, receiver) = mpsc::channel();
        self.send(Message::Park(done));
        receiver
    }

    /// Does something with the parked CPU, on its thread, and waits for it.
    pub fn with<R: Send + 'static>(&self, job: impl FnOnce(&mut KvmCpu) -> R + Send + 'static) -> Option<R> {
        let (sender, receiver) = mpsc::channel();
        let job: Job = Box::new(move |cpu| drop(sender.send(job(cpu))));
        self.send(Message::Do(job));
        receiver.recv().ok()
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.send(Message::Exit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

thread_local! {
    /// The running CPU's shared page, for the signal handler.
    static RUN_PAGE: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Makes the kernel return from (or not enter) the guest: the signal alone could come just before KVM_RUN.
extern "C" fn on_kick(_: libc::c_int) {
    RUN_PAGE.with(|page| {
        let page = page.get();
        if !page.is_null() {
            // SAFETY: the page is mapped as long as the thread's CPU lives, which clears the pointer before it goes;
            // a byte's store is atomic on this architecture.
            unsafe { ptr::write_volatile(&raw mut (*page).immediate_exit, 1) };
            compiler_fence(Ordering::SeqCst);
        }
    });
}

fn install_kick_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: the action is fully initialised; the handler only touches a thread-local and a mapped page.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(kick_signal(), &action, ptr::null_mut());
        }
    });
}

struct VcpuLoop {
    cpu: KvmCpu,
    buses: Buses,
    inbox: Receiver<Message>,
    kicked: Arc<AtomicBool>,
    crash_told: bool,
}

impl VcpuLoop {
    fn run(mut self, events: &impl Fn(CpuEvent)) {
        let page: *mut kvm_run = self.cpu.fd().get_kvm_run();
        RUN_PAGE.with(|cell| cell.set(page));
        let mut running = false;
        loop {
            let message = match running {
                true => self.inbox.try_recv().map_err(|e| e == TryRecvError::Disconnected),
                false => self.inbox.recv().map_err(|_| true),
            };
            match message {
                Ok(Message::Run) => {
                    self.cpu.going_on();
                    running = true;
                }
                Ok(Message::Park(done)) => {
                    running = false;
                    let _ = done.send(());
                }
                Ok(Message::Do(job)) => {
                    self.crash_told = false;
                    job(&mut self.cpu);
                }
                Ok(Message::Exit) | Err(true) => break,
                Err(false) => {
                    let event = self.run_until_kicked();
                    self.finish_access();
                    if let Some(event) = event {
                        running = matches!(event, CpuEvent::Crashed(_));
                        events(event);
                    }
                }
            }
        }
        RUN_PAGE.with(|cell| cell.set(ptr::null_mut()));
    }

    /// Runs until it is kicked (`None`) or something happens that others must know.
    fn run_until_kicked(&mut self) -> Option<CpuEvent> {
        loop {
            self.cpu.fd().set_kvm_immediate_exit(0);
            if self.kicked.swap(false, Ordering::SeqCst) {
                return None;
            }
            if let Some(event) = self.step() {
                return Some(event);
            }
        }
    }

    /// Has the kernel finish the access that the last exit was for, without running the guest any further.
    fn finish_access(&mut self) {
        self.cpu.fd().set_kvm_immediate_exit(1);
        let _ = self.cpu.fd().run();
        self.cpu.fd().set_kvm_immediate_exit(0);
    }

    /// Of Hyper-V's exits one waits for an answer: a hypercall that KVM does not do itself. None is offered.
    fn refuse_hypercall(&mut self) {
        /// HV_STATUS_INVALID_HYPERCALL_CODE.
        const INVALID_CODE: u64 = 2;
        let page: *mut kvm_run = self.cpu.fd().get_kvm_run();
        // SAFETY: after this exit the kernel has filled in the union's hyperv member; the page is mapped.
        unsafe {
            let exit = &raw mut (*page).__bindgen_anon_1.hyperv;
            if (*exit).type_ == kvm_bindings::KVM_EXIT_HYPERV_HCALL {
                (*exit).u.hcall.result = INVALID_CODE;
            }
        }
    }

    /// Runs the guest up to its next exit, and serves that.
    fn step(&mut self) -> Option<CpuEvent> {
        let page: *const kvm_run = self.cpu.fd().get_kvm_run();
        let buses = &self.buses;
        // SAFETY: after an I/O exit the kernel has filled in the union's io member; the page is mapped.
        let io_size = || usize::from(unsafe { (*page).__bindgen_anon_1.io.size }.max(1));
        match self.cpu.fd().run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                for item in data.chunks_mut(io_size()) {
                    buses.ports.read(u64::from(port), item);
                }
                None
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                // A string instruction brings several items; what one of them asks for ends the instruction.
                let action = data.chunks(io_size()).find_map(|item| buses.ports.write(u64::from(port), item));
                action.map(CpuEvent::Action)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                buses.memory.read(address, data);
                None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                // SAFETY: the page is mapped, and the kernel writes it only while the CPU runs.
                let in_smm = u32::from(unsafe { (*page).flags }) & kvm_bindings::KVM_RUN_X86_SMM != 0;
                let action = match in_smm {
                    true => buses.memory.write_in_smm(address, data),
                    false => buses.memory.write(address, data),
                };
                action.map(CpuEvent::Action)
            }
            // A triple fault resets a PC.
            Ok(VcpuExit::Shutdown) => Some(CpuEvent::Action(Action::Reset)),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => None,
            Ok(VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_CRASH, _)) => {
                // A guest may say so as often as it likes.
                let first = !std::mem::replace(&mut self.crash_told, true);
                first.then(|| CpuEvent::Crashed(self.cpu.crash_code()))
            }
            Ok(VcpuExit::SystemEvent(kind, _)) => Some(CpuEvent::Action(match kind {
                kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Action::PowerOff,
                _ => Action::Reset,
            })),
            // Exits that only a machine with Hyper-V's interfaces makes: registers that KVM does not know read as 0 and
            // ignore writes, where an exception would be the end of Windows.
            Ok(VcpuExit::X86Rdmsr(exit)) => {
                (*exit.data, *exit.error) = (0, 0);
                None
            }
            Ok(VcpuExit::X86Wrmsr(exit)) => {
                *exit.error = 0;
                None
            }
            Ok(VcpuExit::Hyperv) => {
                self.refuse_hypercall();
                None
            }
            Ok(VcpuExit::InternalError) => {
                // SAFETY: after this exit the kernel has filled in the union's internal member; the page is mapped.
                let suberror = unsafe { (*page).__bindgen_anon_1.internal.suberror };
                let place = self.cpu.whereabouts();
                Some(CpuEvent::Failed(format!(
                    "the kernel can't execute what the guest does ({}) at {place}",
                    match suberror {
                        1 => "an instruction it can't emulate".into(),
                        other => format!("internal error {other}"),
                    }
                )))
            }
            Ok(VcpuExit::FailEntry(reason, _)) => {
                let place = self.cpu.whereabouts();
                Some(CpuEvent::Failed(format!(
                    "the processor refused the guest's state (reason {reason:#x}) at {place}"
                )))
            }
            Ok(exit) => {
                let exit = format!("{exit:?}");
                Some(CpuEvent::Failed(format!("the guest stopped in an unknown way ({exit})")))
            }
            Err(error) => match io::Error::from(error) {
                e if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => None,
                e => Some(CpuEvent::Failed(format!("the CPU can't run: {e}, at {}", self.cpu.whereabouts()))),
            },
        }
    }
}
