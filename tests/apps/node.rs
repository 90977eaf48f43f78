//! A node of a hosting cluster: nginx and php-fpm with phpMyAdmin and DokuWiki, and a MariaDB of its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub struct Node {
    pub address: SocketAddr,
    children: Vec<Child>,
    _directory: TempDir,
}

impl Node {
    /// Starts the node's servers and creates the database `on_NAME` for the account user1.
    pub fn start(name: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let here = directory.path();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let children = vec![mariadb(here, name), php_fpm(here), nginx(here, address)];
        until(&format!("nginx of {name}"), || TcpStream::connect(address).is_ok());
        Self { address, children, _directory: directory }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let pid = nix::unistd::Pid::from_raw(child.id() as i32);
            // TERM lets them end their own children.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

fn program(path: &str) -> Command {
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !ready() {
        assert!(Instant::now() < deadline, "{what} does not come up");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn mariadb(here: &Path, name: &str) -> Child {
    let data = here.join("mysql");
    let socket = here.join("mysql.sock");
    let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    let installed = program("mariadb-install-db")
        .arg("--no-defaults")
        .arg(format!("--datadir={}", data.display()))
        .arg(format!("--user={user}"))
        .args(["--auth-root-authentication-method=socket", "--skip-test-db"])
        .status()
        .expect("mariadb-server is installed");
    assert!(installed.success());
    let child = program("/usr/sbin/mariadbd")
        .arg("--no-defaults")
        .arg(format!("--datadir={}", data.display()))
        .arg(format!("--socket={}", socket.display()))
        .arg(format!("--pid-file={}", here.join("mysql.pid").display()))
        .arg(format!("--user={user}"))
        .args(["--skip-networking", "--innodb-buffer-pool-size=16M", "--performance-schema=off"])
        .spawn()
        .unwrap();
    until("mariadb", || UnixStream::connect(&socket).is_ok());
    let sql = format!(
        "CREATE DATABASE on_{name}; CREATE USER user1@localhost IDENTIFIED BY 'secret1'; GRANT ALL PRIVILEGES ON *.* TO user1@localhost;"
    );
    let made =
        program("mariadb").arg("--no-defaults").arg(format!("--socket={}", socket.display())).args(["--execute", &sql]).status().unwrap();
    assert!(made.success());
    child
}

fn php_fpm(here: &Path) -> Child {
    let socket = here.join("php.sock");
    std::fs::create_dir(here.join("sessions")).unwrap();
    let (log, mysql, sessions) = (here.join("php.log"), here.join("mysql.sock"), here.join("sessions"));
    let conf = format!(
        "[global]\nerror_log = {log}\ndaemonize = no\n[www]\nuser = root\ngroup = root\nlisten = {socket}\npm = static\npm.max_children = 3\n\
         php_admin_value[mysqli.default_socket] = {mysql}\nphp_admin_value[session.save_path] = {sessions}\n",
        log = log.display(),
        socket = socket.display(),
        mysql = mysql.display(),
        sessions = sessions.display()
    );
    let file = here.join("php-fpm.conf");
    std::fs::write(&file, conf).unwrap();
    let binary =
        std::fs::read_dir("/usr/sbin").unwrap().map(|entry| entry.unwrap().path()).find(|path| path.to_string_lossy().contains("php-fpm"));
    let child = program(binary.expect("php-fpm is installed").to_str().unwrap()).arg("-R").arg("-F").arg("-y").arg(&file).spawn().unwrap();
    until("php-fpm", || UnixStream::connect(&socket).is_ok());
    child
}

fn nginx(here: &Path, address: SocketAddr) -> Child {
    let socket = here.join("php.sock");
    let conf = format!(
        "daemon off; pid nginx.pid; error_log error.log; user root; worker_processes 1; events {{}}\n\
         http {{\n  include /etc/nginx/mime.types; access_log off;\n  client_body_temp_path body; fastcgi_temp_path fcgi; proxy_temp_path p; scgi_temp_path s; uwsgi_temp_path u;\n  \
         server {{\n    listen {address}; root /usr/share; index index.php doku.php;\n    location ~ \\.php$ {{\n      include /etc/nginx/fastcgi.conf;\n      fastcgi_pass unix:{};\n    }}\n  }}\n}}\n",
        socket.display()
    );
    let file = here.join("nginx.conf");
    std::fs::write(&file, conf).unwrap();
    program("/usr/sbin/nginx")
        .arg("-p")
        .arg(here)
        .arg("-c")
        .arg(&file)
        .arg("-e")
        .arg(here.join("start.log"))
        .spawn()
        .expect("nginx is installed")
}
