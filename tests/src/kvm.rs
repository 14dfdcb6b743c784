//! Which kind of /dev/kvm this machine has, because it decides where a test can run.

use std::fs::{self, OpenOptions};

/// The kinds of KVM that tests must tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kvm {
    /// VT-x or AMD-V: every guest runs at full speed.
    Hardware,
    /// A software KVM, such as KVM_PVM: guest code in user mode runs at full speed, kernel code is interpreted and a few
    /// instructions are missing, so that our probe guest and SeaBIOS run but a stock kernel does not.
    Software,
    /// No /dev/kvm, or no permission to open it.
    None,
}

impl Kvm {
    /// Looks at this machine.
    pub fn detect() -> Self {
        if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            return Kvm::None;
        }
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        if flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
            Kvm::Hardware
        } else {
            Kvm::Software
        }
    }
}
