//! What the process is told by signals. They are received from when these are made.

use std::io;

/// To be made within a runtime.
pub(crate) fn listen() -> io::Result<(Told, Hangups)> {
    Ok((Told::listen()?, Hangups::listen()?))
}

#[cfg(unix)]
pub(crate) use unix::{Hangups, Told};

#[cfg(unix)]
mod unix {
    use std::io;
    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// To stop: SIGINT and SIGTERM.
    pub(crate) struct Told {
        interrupt: Signal,
        terminate: Signal,
    }

    impl Told {
        pub(super) fn listen() -> io::Result<Told> {
            let interrupt = signal(SignalKind::interrupt())?;
            Ok(Told { interrupt, terminate: signal(SignalKind::terminate())? })
        }

        /// Waits for the next.
        pub(crate) async fn recv(&mut self) {
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
            }
        }
    }

    /// To read again what may have changed: SIGHUP.
    pub(crate) struct Hangups(Signal);

    impl Hangups {
        pub(super) fn listen() -> io::Result<Hangups> {
            signal(SignalKind::hangup()).map(Hangups)
        }

        /// Waits for the next.
        pub(crate) async fn recv(&mut self) -> Option<()> {
            self.0.recv().await
        }
    }
}

#[cfg(not(unix))]
pub(crate) use other::{Hangups, Told};

/// Where there are no such signals there is Ctrl-C.
#[cfg(not(unix))]
mod other {
    use std::io;

    pub(crate) struct Told;

    impl Told {
        pub(super) fn listen() -> io::Result<Told> {
            Ok(Told)
        }

        pub(crate) async fn recv(&mut self) {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending().await
            }
        }
    }

    pub(crate) struct Hangups;

    impl Hangups {
        pub(super) fn listen() -> io::Result<Hangups> {
            Ok(Hangups)
        }

        pub(crate) async fn recv(&mut self) -> Option<()> {
            None
        }
    }
}
