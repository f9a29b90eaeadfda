# Ruby's pg.

require 'pg'

PLACE = 'select name from place'.freeze
CLIENT = ENV.fetch('CLIENT')

def expect(what, found, expected)
  abort("#{what}: #{expected.inspect} was expected, not #{found.inspect}") if found != expected
end

def ask(url, sql)
  PG.connect(url) { |session| session.exec(sql).getvalue(0, 0) }
end

puts "#{PG::VERSION}, libpq #{PG.library_version / 10_000}"
url = ENV.fetch('URL')
expect('the URL', ask(url, PLACE), 'feature/login')
expect('the URL of the other branch', ask(ENV.fetch('OTHER_URL'), PLACE), 'other')

PG.connect(url) do |session|
  session.exec('create table made (client text)')
  session.exec_params('insert into made values ($1)', [CLIENT])
end
expect('the row', ask(url, 'select client from made'), CLIENT)

expect('sslmode=require', ask("#{url}?sslmode=require", PLACE), 'feature/login')
verify = "sslmode=verify-full&sslrootcert=#{ENV.fetch('CA_FILE')}&hostaddr=127.0.0.1"
expect('sslmode=verify-full', ask("#{ENV.fetch('HOST_URL')}?#{verify}", PLACE), 'feature/login')
