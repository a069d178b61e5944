#!/usr/bin/perl
# udp-echo PORT LOG: answers each datagram WORD on the UDP port with "NUMBER WORD", where NUMBER is one more than in
# the answer before. The answer is a line of the log first, so it tells which state of the guest it came from.
#
# Perl alone: its modules would be eight more files in the image. In Linux's headers AF_INET and SOCK_DGRAM are 2.

my ($port, $path) = @ARGV;
socket(my $socket, 2, 2, 0) or die "udp-echo: no socket: $!\n";
bind($socket, pack("S n x12", 2, $port)) or die "udp-echo: port $port can't be had: $!\n";
open(my $log, "+>>", $path) or die "udp-echo: $path can't be opened: $!\n";
seek($log, 0, 0);

my $number = 0;
$number++ while <$log>;
while (defined(my $peer = recv($socket, my $word, 512, 0))) {
    next unless $word =~ /\A[!-~]+\z/;
    my $line = ++$number . " $word";
    syswrite($log, "$line\n") or die "udp-echo: $path can't be written: $!\n";
    send($socket, $line, 0, $peer);
}
die "udp-echo: port $port can't be read: $!\n";
