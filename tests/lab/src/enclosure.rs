//! Room for a lab that leaves nothing behind: a mount namespace with an empty `/run`, and, for those who are not root, a
//! user namespace in which they are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// As whom the lab runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// With the host's own privileges.
    Root,
    /// As the root of a user namespace: no BPF programs, so one worker.
    UserNamespace,
}

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
pub enum EnclosureError {
    /// Neither privileges nor a user namespace.
    #[error("this needs root, or a user namespace, which this host refuses: {source}\n{}", hints())]
    Refused {
        /// Why the user namespace was refused.
        source: io::Error,
    },
    /// Some step in the new namespaces failed.
    #[error("cannot {action}: {source}\n{}", hints())]
    Step {
        /// Which.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Moves the calling process into namespaces of its own, and returns a directory that ends with it. To be called before
/// any thread is started: the kernel moves only single-threaded processes into a user namespace.
pub fn enter() -> Result<(Privilege, PathBuf), EnclosureError> {
    let privilege = match unshare(CloneFlags::CLONE_NEWNS) {
        Ok(()) => Privilege::Root,
        Err(Errno::EPERM) => {
            become_root_of_a_user_namespace()?;
            Privilege::UserNamespace
        }
        Err(errno) => return Err(step("make a mount namespace")(errno)),
    };
    // Nothing that is mounted here shall be seen outside.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(step("make the mounts private"))?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755,size=256m"))
        .map_err(step("mount an empty /run"))?;
    let directory = Path::new("/run/postern-lab");
    fs::create_dir(directory).map_err(|source| EnclosureError::Step { action: "make /run/postern-lab", source })?;
    Ok((privilege, directory.to_owned()))
}

fn become_root_of_a_user_namespace() -> Result<(), EnclosureError> {
    let (user, group) = (geteuid(), getegid());
    let refused = |errno: Errno| EnclosureError::Refused { source: errno.into() };
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(refused)?;
    let write = |path: &str, text: String| fs::write(path, text);
    write("/proc/self/setgroups", "deny".to_owned())
        .and_then(|()| write("/proc/self/uid_map", format!("0 {user} 1")))
        .and_then(|()| write("/proc/self/gid_map", format!("0 {group} 1")))
        .map_err(|source| EnclosureError::Step { action: "map the user into the user namespace", source })
}

fn step(action: &'static str) -> impl Fn(Errno) -> EnclosureError {
    move |errno| EnclosureError::Step { action, source: errno.into() }
}

/// What stands in the way, and how to remove it.
fn hints() -> String {
    let blocking = |key: &str, bad: &str| {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        fs::read_to_string(path).is_ok_and(|value| value.trim() == bad)
    };
    let mut hints = vec!["run it as root (sudo postern lab …)".to_owned()];
    for (key, bad, good) in [
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user.max_user_namespaces", "0", "16384"),
        ("user.max_net_namespaces", "0", "16384"),
    ] {
        if blocking(key, bad) {
            hints.push(format!("or allow user namespaces: sysctl -w {key}={good}"));
        }
    }
    if hints.len() == 1 {
        hints.push(
            "in a container: start it with --privileged, or with --cap-add SYS_ADMIN --cap-add NET_ADMIN".to_owned(),
        );
    }
    hints.join("\n")
}
