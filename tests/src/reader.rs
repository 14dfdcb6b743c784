//! What a screen reader knows of the windows: every control with its name, state and place. Tests find controls by it,
//! as a blind person would, and it shows at the same time that such a person can use the program.
//!
//! AT-SPI, the protocol of screen readers, runs over D-Bus. This is a message bus of the test's own, with just the two
//! services that a program looks for: the accessibility bus (which is the same one) and its registry. Nothing else of a
//! desktop is there, no file dialog for instance, so that programs show their own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use zbus::blocking::{Connection, connection};
use zbus::zvariant::{DynamicType, OwnedObjectPath, OwnedValue};

use crate::process::Process;

/// How long a program may take to answer one question.
const ANSWER: Duration = Duration::from_secs(30);
/// The most controls that are looked at: far more than a window has.
const MAX_CONTROLS: usize = 5000;
/// States, by their bits (`AtspiStateType`).
const ENABLED: u64 = 1 << 8;
const FOCUSED: u64 = 1 << 12;
/// Places are asked for relative to the window (`ATSPI_COORD_TYPE_WINDOW`).
const IN_WINDOW: u32 = 1;

const ACCESSIBLE: &str = "org.a11y.atspi.Accessible";
const TEXT: &str = "org.a11y.atspi.Text";
const COMPONENT: &str = "org.a11y.atspi.Component";
const BUS: &str = "org.freedesktop.DBus";
const ROOT: &str = "/org/a11y/atspi/accessible/root";

/// The bus lets everyone say everything, and starts no service by itself.
const CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:dir=FOLDER</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"#;

/// A thing on the bus: the program's address and the thing's path.
type Object = (String, OwnedObjectPath);
/// The programs that have shown up.
type Programs = Arc<Mutex<Vec<Object>>>;

/// The bus, and the screen reader on it. Both end when it is dropped.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    programs: Programs,
    address: String,
    _bus: Process,
}

/// A control of a window, or a text in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// What it is called.
    pub name: String,
    /// What kind of thing it is, as a screen reader says it.
    pub role: String,
    /// Its left edge in the window, pixels.
    pub left: i32,
    /// Its upper edge.
    pub top: i32,
    /// Its width.
    pub width: i32,
    /// Its height.
    pub height: i32,
    /// It can be used.
    pub enabled: bool,
    /// It has the keyboard.
    pub focused: bool,
}

/// Where programs ask whether there is a screen reader, and on which bus.
struct Status {
    address: String,
}

#[zbus::interface(name = "org.a11y.Bus")]
impl Status {
    fn get_address(&self) -> String {
        self.address.clone()
    }
}

struct Enabled;

#[zbus::interface(name = "org.a11y.Status")]
impl Enabled {
    #[zbus(property)]
    fn is_enabled(&self) -> bool {
        true
    }

    #[zbus(property)]
    fn screen_reader_enabled(&self) -> bool {
        true
    }
}

/// Where programs register.
struct Registry {
    programs: Programs,
}

#[zbus::interface(name = "org.a11y.atspi.Socket")]
impl Registry {
    fn embed(&self, plug: Object) -> (Object,) {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).push(plug.clone());
        (plug,)
    }

    fn unembed(&self, plug: Object) {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).retain(|program| *program != plug);
    }
}

impl Reader {
    /// Starts a bus with its socket in `folder`, and a reader on it.
    pub fn start(folder: &Path) -> Result<Self> {
        let config = folder.join("bus.conf");
        fs::write(&config, CONFIG.replace("FOLDER", &folder.to_string_lossy())).context("could not configure a bus")?;
        let (reader, writer) = std::io::pipe().context("could not make a pipe")?;
        let mut daemon = Command::new("dbus-daemon");
        daemon.arg("--config-file").arg(&config).args(["--nofork", "--nopidfile", "--print-address=1"]);
        daemon.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
        let daemon = Process::start(daemon)?;
        let mut address = String::new();
        BufReader::new(reader).read_line(&mut address).context("could not read the bus's address")?;
        let address = address.trim().to_owned();
        ensure!(!address.is_empty(), "dbus-daemon did not start: see {}", config.display());
        let programs = Programs::default();
        let status = Status { address: address.clone() };
        let connection = connection::Builder::address(address.as_str())?
            .method_timeout(ANSWER)
            .serve_at("/org/a11y/bus", status)?
            .serve_at("/org/a11y/bus", Enabled)?
            .serve_at(ROOT, Registry { programs: programs.clone() })?
            .name("org.a11y.Bus")?
            .name("org.a11y.atspi.Registry")?
            .build()
            .context("could not join the bus")?;
        Ok(Self { connection, programs, address, _bus: daemon })
    }

    /// The bus's address, for `DBUS_SESSION_BUS_ADDRESS`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// All that a process shows, from the top down. Empty while the process has not registered.
    pub fn controls(&self, process: u32) -> Result<Vec<Control>> {
        // A thing may be gone before it is looked at: then it is no longer shown.
        Ok(self.objects(process)?.iter().filter_map(|object| self.control(object)).collect())
    }

    /// The text in a process's control of this name; `None` while there is none.
    pub fn text(&self, process: u32, control: &str) -> Result<Option<String>> {
        let named = |object: &&Object| self.name(object).is_some_and(|name| name == control);
        let objects = self.objects(process)?;
        // From the beginning to the end.
        Ok(objects.iter().find(named).and_then(|object| self.ask(object, TEXT, "GetText", &(0i32, -1i32))))
    }

    fn objects(&self, process: u32) -> Result<Vec<Object>> {
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut waiting: Vec<Object> =
            programs.into_iter().filter(|(name, _)| self.process(name) == Some(process)).collect();
        let mut objects = Vec::new();
        while let Some(object) = waiting.pop() {
            ensure!(objects.len() < MAX_CONTROLS, "process {process} has more controls than a window can have");
            let children: Vec<Object> = self.ask(&object, ACCESSIBLE, "GetChildren", &()).unwrap_or_default();
            waiting.extend(children.into_iter().rev());
            objects.push(object);
        }
        Ok(objects)
    }

    /// The process at an address of the bus, if it is still there.
    fn process(&self, name: &str) -> Option<u32> {
        self.ask(&(BUS.into(), OwnedObjectPath::default()), BUS, "GetConnectionUnixProcessID", &name)
    }

    /// A thing's name, if it has one.
    fn name(&self, object: &Object) -> Option<String> {
        let name: OwnedValue = self.ask(object, "org.freedesktop.DBus.Properties", "Get", &(ACCESSIBLE, "Name"))?;
        String::try_from(name).ok().filter(|name| !name.is_empty())
    }

    /// A thing with a name.
    fn control(&self, object: &Object) -> Option<Control> {
        let name = self.name(object)?;
        let (left, top, width, height) = self.ask(object, COMPONENT, "GetExtents", &IN_WINDOW)?;
        let role = self.ask(object, ACCESSIBLE, "GetLocalizedRoleName", &())?;
        let states: Vec<u32> = self.ask(object, ACCESSIBLE, "GetState", &())?;
        let states = states.iter().rev().fold(0, |all, &half| all << 32 | u64::from(half));
        let (enabled, focused) = (states & ENABLED != 0, states & FOCUSED != 0);
        Some(Control { name, role, left, top, width, height, enabled, focused })
    }

    /// Asks a program something; `None` when it has no answer.
    fn ask<T>(
        &self,
        (name, path): &Object,
        interface: &str,
        method: &str,
        body: &(impl serde::Serialize + DynamicType),
    ) -> Option<T>
    where
        T: for<'d> serde::Deserialize<'d> + zbus::zvariant::Type,
    {
        let answer = self.connection.call_method(Some(name.as_str()), path, Some(interface), method, body).ok()?;
        answer.body().deserialize().ok()
    }
}
