#!/usr/bin/env perl
# Perl's DBD::Pg. What follows `dbi:Pg:` goes to libpq, which takes a URL there.
use strict;
use warnings;
use DBI;
use DBD::Pg;

sub connection { DBI->connect("dbi:Pg:$_[0]", '', '', { RaiseError => 1 }) }

sub place { connection(shift)->selectrow_array('select name from place') }

sub expect {
    my ($what, $found, $expected) = @_;
    die "$what: \"$expected\" was expected, not \"$found\"\n" if $found ne $expected;
}

print "$DBD::Pg::VERSION\n";
expect('the URL', scalar place($ENV{URL}), 'feature/login');
expect('the URL of the other branch', scalar place($ENV{OTHER_URL}), 'other');

my $db = connection($ENV{URL});
$db->do('create table made (client text)');
$db->do('insert into made values (?)', undef, $ENV{CLIENT});
expect('the row', scalar $db->selectrow_array('select client from made'), $ENV{CLIENT});

expect('sslmode=require', scalar place("$ENV{URL}?sslmode=require"), 'feature/login');
my $verified =
    "$ENV{HOST_URL}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert=$ENV{CA_FILE}";
expect('sslmode=verify-full', scalar place($verified), 'feature/login');
